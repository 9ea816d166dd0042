"""A small HTTP server that speaks as much of the Hub's API as its own client needs to list and fetch a model's
files."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One repository, ``owner/model``, and the faults that are switched on."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.status: dict[str, tuple[int, str]] = {}  # "api" or a file -> status and X-Error-Code
        self.cut: dict[str, int] = {}  # file -> bytes after which the connection ends, once
        self.flip: set[str] = set()  # files that arrive with a wrong byte
        self.wait = 0.0  # seconds before the listing is answered
        self.ranges: list[str] = []  # Range headers received
        self.asked: list[str] = []
        self.url = ""

    def listing(self) -> dict:
        siblings = []
        for name, content in self.files.items():
            sibling = {"rfilename": name, "size": len(content)}
            sibling["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if name.endswith(".safetensors"):
                sibling["lfs"] = {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 134,
                }
            siblings.append(sibling)
        return {
            "id": "owner/model",
            "sha": COMMIT,
            "siblings": siblings,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(path)
            if re.fullmatch(r"/api/models/owner/model(/revision/[^/]+)?", path):
                time.sleep(hub.wait)
                if path.endswith("/missing"):
                    return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return self.fault("api") or self.answer(200, json.dumps(hub.listing()).encode())
            if found := re.fullmatch(rf"/owner/model/resolve/{COMMIT}/(.+)", path):
                name = found[1]
                return self.fault(name) or self.file(name)
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

        def fault(self, name: str) -> bool:
            if name not in hub.status:
                return False
            status, code = hub.status[name]
            self.answer(status, b"", {"X-Error-Code": code} if code else {})
            return True

        def file(self, name: str) -> None:
            content = hub.files[name]
            if name in hub.flip:
                content = content[:-1] + bytes([content[-1] ^ 1])
            first, headers = 0, {}
            if asked := self.headers.get("Range"):
                hub.ranges.append(asked)
                first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            rest = content[first:]
            if name in hub.cut:
                keep = hub.cut.pop(name)
                self.answer(206 if first else 200, rest, headers, keep)
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.answer(206 if first else 200, rest, headers)

        def answer(self, status: int, body: bytes, headers: dict = {}, keep: int | None = None) -> None:  # noqa: B006
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:keep])

        def log_message(self, *_: object) -> None:
            pass

        def finish(self) -> None:
            with suppress(OSError, ValueError):
                super().finish()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # the client hangs up on purpose in some tests
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
