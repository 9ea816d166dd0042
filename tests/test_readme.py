"""The README: its front matter parses, its tree is the tree, its code runs on the shipped model."""

from __future__ import annotations

import re

import pytest

from aig import publish
from aig.assets import ASSETS

ROOT = ASSETS.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_front_matter_is_what_spaces_need():
    assert publish.front_matter(ROOT) == []


def test_the_tree_names_what_is_there():
    tree = README.split("## Where things are")[1].split("```")[1]
    folders, listed = [ROOT], set()
    for line in tree.strip().splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        folders = folders[: 1 + len(indent) // 2]
        path = folders[-1] / name
        assert path.exists(), path
        listed.add(path.relative_to(ROOT).as_posix())
        folders.append(path)
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "aig").glob("*/__init__.py")}
    assert rooms <= listed


def test_the_code_runs_on_the_shipped_model(monkeypatch):
    method, load, _ = BLOCKS
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(load, names)
    names["pipe"].set_progress_bar_config(disable=True)
    exec(method, names)
    assert names["images"][0].size == (64, 64)


@pytest.mark.parametrize("path", re.findall(r"\]\((assets/[^)]+)\)", README))
def test_linked_files_exist(path):
    assert (ROOT / path).is_file()
