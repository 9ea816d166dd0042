"""The page's modules: each is served under the address of its content, and nothing else is."""

from __future__ import annotations

import posixpath
import re

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from aig.ui.shell import front, theme


@pytest.fixture(scope="module")
def client():
    return TestClient(Starlette(routes=[front.route()]))


@pytest.mark.parametrize("name", front.MODULES)
def test_a_module_is_served_for_good_and_as_javascript(client, name):
    answer = client.get(f"/{front.PLACE}/{name}")
    assert answer.content == (front.FOLDER / name).read_bytes() and answer.headers["content-type"].startswith("text/javascript")
    assert "immutable" in answer.headers["cache-control"] and answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", front.MODULES)
def test_what_a_module_imports_is_a_module_too(name):
    text = (front.FOLDER / name).read_text()
    for found in re.findall(r'^import .*"(.+)";$', text, re.MULTILINE):
        assert found.startswith(".") and posixpath.normpath(posixpath.join(posixpath.dirname(name), found)) in front.MODULES
    assert "Gradio" not in text or name == "shell/gradio.js"


@pytest.mark.parametrize(
    "path",
    [
        f"{front.PLACE}/compare/page.py", f"{front.PLACE}/parts/stage.html", f"{front.PLACE}/shell/on_load.js", f"{front.PLACE}/",
        f"{front.PLACE}/../../app.py", f"{front.PLACE}/%2e%2e/%2e%2e/app.py", f"{front.PLACE}/%2Fetc%2Fpasswd",
        f"{front.PLACE}/compare/page.js/", "front/0123456789abcdef/compare/page.js", "front",
    ],
)  # fmt: skip
def test_nothing_else_is_served(client, path):
    assert client.get(f"/{path}").status_code == 404


def test_the_head_asks_for_every_module_and_tells_no_path_of_this_machine():
    head = theme.head()
    assert all(head.count(f'"{front.PLACE}/{name}"') == 1 for name in front.MODULES)
    assert str(front.FOLDER) not in head and not re.search(r"\s(src|href)=\"(/|\w+:(?!image/svg))", head)
    assert head.count("<style>") == len(theme.STYLES)


def test_every_style_sheet_of_the_page_is_used():
    assert {path.relative_to(front.FOLDER).as_posix() for path in front.FOLDER.rglob("*.css")} == set(theme.STYLES)
