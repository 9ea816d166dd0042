"""A small HTTP server that speaks as much of the Hub's API as its own client needs to list and fetch a model's files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from aig.published import presets

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = os.urandom(3 * 2**20)
MODEL = {
    "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
    "README.md": b"hello",
    "pipeline.py": b"raise SystemExit",
    "v1-5-pruned.ckpt": b"pickle",
    "v1-5-pruned.safetensors": b"single",
    "scheduler/scheduler_config.json": b"{}",
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"#version",
    "tokenizer/chat_template.jinja": b"{{ 1 }}",
    "tokenizer/tokenizer.py": b"1",
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": b"one whole",
    "text_encoder/pytorch_model.bin": b"pickle",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"full size",
    "unet/diffusion_pytorch_model.fp16.safetensors": WEIGHTS,
    "unet/diffusion_pytorch_model.fp16.bin": b"pickle",
    "vae/config.json": b"{}",
    "vae/model.fp16-00001-of-00002.safetensors": b"shard 1",
    "vae/model.fp16-00002-of-00002.safetensors": b"shard 2",
    "vae/model.safetensors.index.fp16.json": b"{}",
    "vae/model.safetensors": b"full size",
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": b"not used",
    "lora/weights.safetensors": b"lora",
    "lora/adapter_config.json": b"{}",
}
WANTED = {
    "model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "text_encoder/config.json", "text_encoder/model.safetensors", "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors", "vae/config.json", "vae/model.fp16-00001-of-00002.safetensors",
    "vae/model.fp16-00002-of-00002.safetensors", "vae/model.safetensors.index.fp16.json",
}  # fmt: skip
BIG = "unet/diffusion_pytorch_model.fp16.safetensors"
BASE = presets.parse(
    (presets.FOLDER / "sd15.toml").read_text().split("[[tuned]]")[0]
    .replace("stable-diffusion-v1-5/stable-diffusion-v1-5", "owner/model")
    .replace("451f4fe16113bff5a5d2269ed5ad43b0592e9a14", "main"), "base",
)  # fmt: skip


def tuned(**changes: str) -> presets.Tuned:
    given = {"kind": "lora", "repo": "owner/model", "subfolder": "lora", "weight_name": "weights.safetensors"}
    return presets.Tuned(name="t", reward="r", licence="l", source="s", **{**given, **changes})


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
