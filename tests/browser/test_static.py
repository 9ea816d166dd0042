"""Stage with player, viewer and curve editor on a page of files, without Gradio or any server that computes."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from aig.assets import ASSETS
from aig.method import schedules
from aig.runs import replay
from aig.runs.request import Request
from aig.ui.compare import views
from aig.ui.parts import curve
from aig.ui.parts.stage import stage
from tests.browser.driving import script, state, watch
from tests.browser.test_editor import Editor
from tests.serving import TINY, tiny_model

SIDE = 16  # pixels of the tiny model's images
REQUEST = Request(prompt="a person with glasses", images=4, steps=5)


class Quiet(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".js": "text/javascript"}  # some machines know it as plain text

    def log_message(self, *told: object) -> None:
        pass


@pytest.fixture(scope="module")
def files():
    """The address of the repository's files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=ASSETS.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(make_pipe, lora_file):
    """What the page needs: the frames of a recorded run and what the curve editor is told."""
    updates = replay.record(lambda: tiny_model(make_pipe(), lora_file), REQUEST)
    settings = {"presets": [(name, name) for name in schedules.PRESETS], "limits": curve.LIMITS, "facts": curve.facts(TINY, REQUEST)}
    return {"frames": [stage(view) for view in views.replayed(updates)], "schedule": REQUEST.schedule, "curve": settings}


@pytest.fixture
def page(files, run, browser):
    """The open page; at the end nothing but its files was asked for, and no error or warning was shown."""
    page = browser.new_page(viewport={"width": 1366, "height": 900})
    troubles, asked = watch(page, files), []
    page.on("request", lambda request: asked.append(request.url))
    page.route("**/run.json", lambda route: route.fulfill(json=run))
    page.goto(f"{files}/tests/browser/static/index.html")
    page.wait_for_selector(".presets button")
    yield page
    page.close()
    assert troubles == []
    assert not [url for url in asked if "/aig/ui/" not in url and "/tests/browser/static/" not in url and not url.startswith("data:")]


def test_the_run_plays_and_its_steps_can_be_scrubbed(page):
    state(page, "done")
    assert page.get_attribute(".player .play", "aria-label") == "Play"
    page.focus(".player input")
    page.keyboard.press("Home")
    for step in range(1, REQUEST.steps):  # the keys stay with the slider, however often the page is drawn again
        assert page.inner_text(".progress span") == f"Step {step} of {REQUEST.steps}"
        page.keyboard.press("ArrowRight")
    state(page, "done")
    page.click(".player .play")
    page.click(".player .play")
    assert page.get_attribute(".player .play", "aria-pressed") == "false"


def test_a_live_run_is_followed_and_told(page, run):
    state(page, "done")
    for name in ("running", "done"):
        page.evaluate(
            "([html, state]) => hosts.stage.change('value', html.replace('recorded', 'live').replace(/data-state=\"\\w+\"/, `data-state=\"${state}\"`))",
            [run["frames"][-1], name],
        )
        assert page.is_enabled(".player input") == (name == "done")
    assert ["asked", page.get_attribute(".stage", "data-link")] in page.evaluate("news")
    page.click(".player .save")
    page.click(".player .copy")
    assert page.evaluate("hosts.stage.sent") == [["submit", None]] and page.evaluate("news.at(-1)[0]") == "copy"


def test_a_seed_is_looked_at_and_left_with_the_keyboard(page):
    state(page, "done")
    page.locator(".arm.aig .cells button").first.focus()
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert page.inner_text(".viewer h2") == "Seed 10"
    for arm in range(3):
        shown, original = page.evaluate(script("pixels"), [arm, arm, 3, SIDE])
        assert shown == original
    page.keyboard.press("2")
    assert page.locator(".viewer .divider").count() == 2
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "seed 10, AIG"


def test_a_curve_is_drawn_and_handed_over(page):
    editor = Editor(page, "input[type=text]")
    page.click(".presets button:has-text('linear')")
    editor.settle()
    page.mouse.click(*editor.at(0.41, 0.12))
    assert page.evaluate("hosts.curve.value") == editor.text == "points:0,0;0.4,0.1;1,1"
    page.check(".curve .follow input")
    editor.drag((0.4, 0.1), (0.6, 0.7))
    page.wait_for_function("hosts.curve.sent.length === 1")
    assert page.evaluate("hosts.curve.sent") == [["submit", None]] and editor.text == "points:0,0;0.6,0.7;1,1"


def test_what_the_host_changes_is_shown(page):
    editor = Editor(page, "input[type=text]")
    page.evaluate("hosts.curve.change('value', 'power_4')")
    editor.settle()
    assert editor.text == editor.name == "power_4"
    page.evaluate("hosts.curve.change('facts', { steps: 7, closed: true, cost: 'nothing' })")
    page.locator(".curve .dot").nth(6).wait_for()  # the page forbids what waiting for a function needs
    assert page.inner_text(".curve .cost") == "nothing"
