"""How the page's modules arrive: under a strict policy, behind a proxy, kept by the browser, and when they are late."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from aig.runs import replay
from aig.runs import request as settings
from aig.ui.shell import front
from tests.browser.driving import open_page, script, set_slider, state, watch
from tests.serving import served, tiny_model

# Gradio itself runs the text of templates and of js_on_load, and has scripts in its page.
POLICY = "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; object-src 'none'"
FOLDER = "/some/where"
LOST = {"host", "content-length", "content-encoding", "transfer-encoding", "connection"}  # headers that a proxy makes anew


@contextmanager
def proxied(url: str):
    """The address at which a proxy shows what is at ``url``, in a folder of its own."""
    client = httpx.AsyncClient(base_url=url, timeout=60)

    async def forward(request: Request) -> StreamingResponse:
        headers = [(name, value) for name, value in request.headers.items() if name not in LOST]
        address = httpx.URL(path="/" + request.path_params["path"], query=request.url.query.encode())
        asked = client.build_request(request.method, address, headers=headers, content=await request.body())
        answer = await client.send(asked, stream=True)
        kept = {name: value for name, value in answer.headers.items() if name not in LOST}
        return StreamingResponse(answer.aiter_bytes(), answer.status_code, kept, background=BackgroundTask(answer.aclose))

    proxy = Starlette(routes=[Route(f"{FOLDER}/{{path:path}}", forward, methods=["GET", "HEAD", "POST"])])
    server = uvicorn.Server(uvicorn.Config(proxy, host="127.0.0.1", port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}{FOLDER}"
    server.should_exit = True


def compared(page) -> None:
    """The page works: its parts are there, and a run fills the grids."""
    page.wait_for_selector(".presets button")
    set_slider(page, "Steps", 4)
    page.click("#run")
    state(page, "done")
    page.locator(".arm.aig .cells button").first.click()
    assert page.inner_text(".viewer h2") == "Seed 7"
    page.keyboard.press("Escape")


def test_the_page_works_under_a_policy_that_runs_its_own_scripts_only(app, browser):
    url, _ = app
    page = browser.new_page()
    troubles = watch(page, url)

    def strict(route):
        answer = route.fetch()
        route.fulfill(response=answer, headers=answer.headers | {"content-security-policy": POLICY})

    page.route(lambda address: address.split("?")[0] == f"{url}/", strict)
    open_page(page, url)
    compared(page)
    page.close()
    assert troubles == []


def test_the_page_works_behind_a_proxy_that_gives_it_a_folder(browser, make_pipe, lora_file, monkeypatch):
    monkeypatch.setenv("GRADIO_ROOT_PATH", FOLDER)
    with served(lambda: tiny_model(make_pipe(), lora_file)) as inner, proxied(inner) as url:
        page, missing = browser.new_page(), []
        page.on("response", lambda answer: answer.status >= 400 and missing.append(answer.url))
        page.on("pageerror", lambda error: missing.append(str(error)))
        open_page(page, url)
        compared(page)
        page.close()
        assert not [name for name in missing if not name.endswith("/manifest.json")]  # which Gradio asks the proxy itself for


def test_a_browser_fetches_the_modules_once(app, browser):
    url, _ = app
    page = browser.new_page()
    for visit in ("first", "second"):
        open_page(page, url)
        page.wait_for_selector(".presets button")
        arrived = page.evaluate(script("arrivals"), f"/{front.PLACE}/")
        assert len(arrived) == len(front.MODULES)
        assert all((size > 0) == (visit == "first") for size in arrived.values()), arrived
    page.close()


@pytest.fixture(scope="module")
def recorded(make_pipe, lora_file):
    """The address of an app that opens on a recorded run."""
    run = replay.record(lambda: tiny_model(make_pipe(), lora_file), settings.Request(prompt=replay.EXAMPLES[0], images=4, steps=4))
    with served(lambda: tiny_model(make_pipe(), lora_file), [run]) as url:
        yield url


@pytest.mark.parametrize("query", ["", "?run=v1!prompt=a+robot!kl=0"])
def test_modules_that_are_late_miss_nothing(recorded, browser, query):
    page = browser.new_page()
    troubles, held, late = watch(page, recorded), [], True
    page.route(f"**/{front.PLACE}/**", lambda route: held.append(route) if late else route.continue_())
    page.goto(recorded + query)
    prompt = "a robot" if query else replay.EXAMPLES[0]
    page.wait_for_selector(".mosaic img", state="detached" if query else "visible")  # the first picture does not wait for them
    page.wait_for_function("text => document.querySelector('#prompt :is(input, textarea)')?.value === text", arg=prompt)
    page.wait_for_timeout(1000)  # what the page is told when it opens has come
    assert held and page.locator(".presets button").count() == 0
    late = False
    for route in held:
        route.continue_()
    page.wait_for_selector(".presets button")
    state(page, "idle" if query else "done")
    assert page.inner_text(".asked q") == prompt and page.is_enabled(".player input") == (not query)
    page.close()
    assert troubles == []
