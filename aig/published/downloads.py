"""Downloads of published weights: fetched in a process of their own, resumable, verified, and found again on the disk.

The app runs offline (HF_HUB_OFFLINE=1), and that holds for a whole process. So an explicit request is served by a
process of its own, ``apart``, and the one that serves images never opens a connection. Files lie under their commit
as plain files, without the Hub cache's symbolic links, so that a model's folder can be checked on its own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aig.published.hub import MAX_TOTAL, Download, File, Listed, Source, Unavailable, check_space, explained, length, plan, store
from aig.published.presets import COMMIT, Preset, Tuned, folder_of, is_local

MAX_OWN = 20 * 10**9  # bytes of one model that a visitor named
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
MANIFEST = "aig-files.json"  # written when all files are there: a folder without it is not a model
CHUNK = 2**20


def located(source: Source) -> Path | None:
    """The folder with a model's files if it is complete on this machine, else None. A local id must exist: ValueError."""
    if is_local(source.repo):
        return folder_of(source.repo)
    home = store() / source.repo.replace("/", "--")
    commit = source.revision
    if not COMMIT.fullmatch(commit):
        commit = _read_json(home / "revisions.json").get(commit, "")
    folder = home / commit
    listed = _read_json(folder / MANIFEST) if COMMIT.fullmatch(commit) else {}
    there = _marks(source) <= set(listed) and all(length(folder / name) == size for name, size in listed.items())
    return folder if there else None


def fetch(planned: Download, on_progress: Callable[[int, int], None] = lambda done, total: None, *, endpoint: str | None = None) -> Path:
    """Download a plan's files and return their folder. on_progress gets (bytes there, bytes in all).

    Files that are there are kept, a part of a file is continued, and each file gets its name only when its size and its
    checksum are right. Raises Unavailable with one line, after which the same call goes on where this one stopped.
    """
    check_space(planned.folder, planned.left)
    there = 0
    for file in planned.files:
        path = planned.folder / file.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if length(path) != file.size:
                report = functools.partial(_report, on_progress, there, planned.total)
                _download(file, path, planned, report, endpoint)
        except Unavailable:
            raise
        except Exception as error:
            raise explained(error, planned) from error
        there += file.size
        on_progress(there, planned.total)
    try:
        known = _read_json(planned.folder / MANIFEST)
        _write_json(planned.folder / MANIFEST, known | {file.name: file.size for file in planned.files})
        revisions = planned.folder.parent / "revisions.json"
        _write_json(revisions, _read_json(revisions) | {planned.revision: planned.commit})
    except OSError as error:
        raise explained(error, planned) from error
    return planned.folder


def apart(source: Source, *, only_plan: bool = False, anonymous: bool = False) -> Iterator[dict]:
    """Download and fetch in a process of its own that may use the network, while this one stays offline.

    anonymous: without the operator's token, and no more than MAX_OWN bytes, for what a visitor named.

    Yields {"plan": words, "total": bytes, "left": bytes}, then {"done": bytes, "total": bytes} and at last {"folder":
    path}. Raises Unavailable or ValueError with the one line. Closing the generator ends the download; it resumes
    next time.
    """
    order = {"kind": type(source).__name__, "only_plan": only_plan, "source": dataclasses.asdict(source)}
    order["most"] = MAX_OWN if anonymous else MAX_TOTAL
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    if anonymous:
        environment = {key: value for key, value in environment.items() if key not in TOKENS} | {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "aig.published.downloads"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    orders, events = worker.stdin, worker.stdout
    assert orders is not None and events is not None  # both are pipes
    try:
        orders.write(json.dumps(order))
        orders.close()
        for line in events:
            event = json.loads(line)
            if "error" in event:
                raise (Unavailable if event["unavailable"] else ValueError)(event["error"])
            yield event
        if worker.wait():
            raise Unavailable(f"The download of {source.repo} ended unexpectedly; start it again, it will be continued.")
    finally:
        worker.kill()
        events.close()
        worker.wait()


def main() -> None:
    """The worker of ``apart``: an order on standard input, events on standard output, one JSON object a line."""
    order = json.load(sys.stdin)
    values = order["source"]
    if order["kind"] == "Preset":
        values.update(rewards=tuple(values["rewards"]), tuned=())
        source = Preset(**values)
    elif order["kind"] == "Listed":
        values.update(files=tuple(values["files"]))
        source = Listed(**values)
    else:
        source = Tuned(**values)
    last = -1

    def report(done: int, total: int) -> None:
        nonlocal last
        if done == total or done - last >= 4 * CHUNK:
            last = done
            print(json.dumps({"done": done, "total": total}), flush=True)

    try:
        planned = plan(source, most=order["most"])
        print(json.dumps({"plan": str(planned), "total": planned.total, "left": planned.left}), flush=True)
        if not order["only_plan"]:
            print(json.dumps({"folder": str(fetch(planned, report))}), flush=True)
    except ValueError as problem:
        print(json.dumps({"error": str(problem), "unavailable": isinstance(problem, Unavailable)}), flush=True)


def _report(on_progress: Callable[[int, int], None], before: int, total: int, count: int) -> None:
    on_progress(before + count, total)


class _Meter:
    """Takes the place of tqdm in the Hub's client and passes the number of bytes there on."""

    def __init__(self, report: Callable[[int], None], initial: int) -> None:
        self.report, self.there = report, initial

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: float) -> None:
        self.there += int(count)
        self.report(self.there)


def _download(file: File, path: Path, planned: Download, report: Callable[[int], None], endpoint: str | None) -> None:
    """One file, continued where an earlier attempt stopped, and verified before it gets its name.

    The client's own hf_hub_download starts a broken file again from nothing, so its http_get is used, which can continue.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part = path.with_name(path.name + ".part")
    if length(part) > file.size:
        part.unlink()
    url = hf_hub_url(planned.repo, file.name, revision=planned.commit, endpoint=endpoint)
    with part.open("ab") as target:
        http_get(
            url,
            target,
            resume_size=target.tell(),
            headers=build_hf_headers(library_name="aig"),
            expected_size=file.size,
            tqdm_class=lambda initial=0, **_: _Meter(report, initial),  # ty: ignore[invalid-argument-type]  it is only called
        )
        target.flush()
        os.fsync(target.fileno())
    if length(part) != file.size or digest(part, len(file.digest)) != file.digest:
        part.unlink()
        raise Unavailable(f"{file.name!r} of {planned.repo} arrived with a wrong checksum and was deleted; try again.")
    part.replace(path)


def digest(path: Path, digits: int = 64) -> str:
    """sha256 of a file (64 digits), or git's sha1 of it as a blob (40 digits)."""
    with path.open("rb") as file:
        if digits == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        blob = hashlib.sha1(f"blob {length(path)}\0".encode(), usedforsecurity=False)
        while piece := file.read(CHUNK):
            blob.update(piece)
        return blob.hexdigest()


def _marks(source: Source) -> set[str]:
    """The files whose presence in the manifest shows that this model was fetched, and not another of the repository."""
    if isinstance(source, Listed):
        return set(source.files)
    if isinstance(source, Preset):
        return {"model_index.json"}
    return {"/".join(filter(None, (source.subfolder, source.weight_name or "config.json")))}


def _read_json(path: Path) -> dict[str, Any]:
    """A small JSON object of our own, empty when there is none or it was cut off."""
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(content, indent=1))
    partial.replace(path)


if __name__ == "__main__":
    main()
