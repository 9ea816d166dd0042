"""Where the shipped files are, and whether they are as they were shipped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

ASSETS = Path(__file__).parent.parent / "assets"


def verify(folder: Path) -> None:
    """Check every file against ``manifest.json``; ValueError names the first one that is missing or changed."""
    if not (folder / "manifest.json").is_file():
        raise ValueError(f"The asset folder {folder.name!r} has no manifest.json; restore it from the repository.")
    for name, digest in json.loads((folder / "manifest.json").read_text()).items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"The asset {folder.name}/{name} is missing; restore it from the repository.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(f"The asset {folder.name}/{name} differs from its checksum; restore it from the repository.")
