"""A real Chromium, the real app on the slowed tiny model, and its open page."""

from __future__ import annotations

import pytest

from aig.runs.models import Offer
from tests.browser.driving import CHROMIUM, FLAGS, STEP, open_page, watch
from tests.serving import plain_model, served, slowed, tiny_model


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def app(make_pipe, lora_file):
    """The address of the app and the growing list of the times at which the model was evaluated."""
    pipe = make_pipe()
    calls = slowed(pipe, STEP)
    other = Offer(facts=plain_model(make_pipe(), lora_file).facts, load=lambda tell: plain_model(make_pipe(), lora_file))
    with served(lambda: tiny_model(pipe, lora_file), offers=[other]) as url:
        yield url, calls


@pytest.fixture
def page(app, browser):
    """The open page; at the end nothing foreign was asked for, and no error, warning or dialog was shown."""
    url, _ = app
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    troubles = watch(page, url)
    open_page(page, url)
    yield page
    if not page.is_closed():
        page.close()
    assert troubles == []
