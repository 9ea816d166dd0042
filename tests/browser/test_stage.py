"""The stage in a real browser: one seed in every column, the trace, links, dropped pictures, the replay, the presenter mode."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image

from aig.runs import export, links, replay
from aig.runs.request import Request
from tests.browser.driving import STEP, open_page, script, set_slider, state, watch
from tests.front.tables import png
from tests.serving import served, slowed, tiny_model

SIDE = 16  # pixels of the tiny model's images


def run(page, steps=4, images=None):
    set_slider(page, "Steps", steps)
    if images:
        set_slider(page, "Images", images)
    page.click("#run")
    state(page, "done")


def cell(page, arm, k):
    return page.locator(".arm").nth(arm).locator(".cells button").nth(k)


def test_a_click_shows_the_seed_in_every_column_pixel_by_pixel(page):
    run(page)
    cell(page, 1, 2).click()
    assert page.inner_text(".viewer h2") == "Seed 9"
    captions = page.locator(".viewer figcaption").all_inner_texts()
    assert captions == ["Base", "Reward-tuned", "AIG"]
    for arm in range(3):
        shown, original = page.evaluate(script("pixels"), [arm, arm, 2, SIDE])
        assert shown == original
    assert page.locator(".viewer canvas").first.get_attribute("data-scale") == "whole"


def test_cells_are_reached_and_left_with_the_keyboard(page):
    run(page)
    assert cell(page, 2, 4).get_attribute("aria-label") == "seed 11, AIG"
    cell(page, 2, 0).focus()
    for key in ("ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert page.inner_text(".viewer h2") == "Seed 11"
    for _ in range(12):  # the focus stays inside, both ways
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('.viewer') !== null")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Escape")
    assert not page.is_visible(".viewer")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "seed 11, AIG"


def test_arrows_go_through_seeds_and_columns(page):
    run(page)
    cell(page, 0, 0).click()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".viewer h2") == "Seed 15"  # around the end
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".viewer h2") == "Seed 8"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.locator(".viewer figcaption").all_inner_texts() == ["Reward-tuned"]
    shown, original = page.evaluate(script("pixels"), [0, 1, 1, SIDE])
    assert shown == original
    page.keyboard.press("3")
    assert "Base and Reward-tuned" in page.inner_text(".viewer figcaption")
    page.keyboard.press("ArrowUp")
    assert "Reward-tuned and AIG" in page.inner_text(".viewer figcaption")


def test_the_slider_shows_each_column_on_its_side_of_the_dividers(page):
    run(page)
    cell(page, 0, 3).click()
    page.keyboard.press("2")
    bars = page.locator(".viewer .divider")
    assert bars.count() == 2 and page.locator(".viewer canvas").count() == 1

    def check(cuts):
        pictures = [page.evaluate(script("pixels"), [0, arm, 3, SIDE]) for arm in range(3)]
        for x in range(SIDE):
            middle = (x + 0.5) / SIDE
            if min(abs(middle - cut) for cut in cuts) > 0.05:
                arm = sum(middle > cut for cut in cuts)
                shown, original = pictures[arm]
                assert [shown[y * SIDE + x] for y in range(SIDE)] == [original[y * SIDE + x] for y in range(SIDE)]

    check([1 / 3, 2 / 3])
    box = page.locator(".viewer .view").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 3, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.1, middle, steps=4)
    page.mouse.up()
    assert bars.first.get_attribute("aria-valuenow") == "10"
    check([0.1, 2 / 3])
    bars.last.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert bars.last.get_attribute("aria-valuenow") == "77" and page.inner_text(".viewer h2") == "Seed 10"
    check([0.1, 0.77])
    page.keyboard.press("ArrowDown")
    assert bars.count() == 1


def test_the_difference_is_absolute_and_says_by_how_much_it_is_amplified(page):
    run(page)
    cell(page, 0, 5).click()
    page.keyboard.press("3")
    shown, base = page.evaluate(script("pixels"), [0, 0, 5, SIDE])
    _, tuned = page.evaluate(script("pixels"), [0, 1, 5, SIDE])
    expected = [[min(255, 2 * abs(p - q)) for p, q in zip(a, b, strict=True)] for a, b in zip(base, tuned, strict=True)]
    assert shown == expected and any(map(any, expected))
    assert "×2" in page.inner_text(".viewer figcaption") and "amplified 2 times" in page.inner_text(".viewer .told")


def test_flicker_alternates_and_waits_for_a_key_when_motion_is_not_wanted(page):
    run(page)
    cell(page, 0, 0).click()
    page.keyboard.press("4")
    for title in ("Reward-tuned", "Base", "Reward-tuned"):
        page.wait_for_function("t => document.querySelector('.viewer figcaption').textContent === t", arg=title, timeout=1500)
    page.keyboard.press("Escape")
    page.emulate_media(reduced_motion="reduce")
    cell(page, 0, 0).click()
    page.keyboard.press("4")
    page.wait_for_timeout(1200)
    assert page.inner_text(".viewer figcaption") == "Base"
    page.keyboard.press("Space")
    assert page.inner_text(".viewer figcaption") == "Reward-tuned"
    shown, original = page.evaluate(script("pixels"), [0, 1, 0, SIDE])
    assert shown == original


def test_zoom_and_pan_move_every_column_alike(page):
    run(page)
    cell(page, 0, 0).click()
    state_of = "[...document.querySelectorAll('.viewer canvas')].map((c) => c.toDataURL())"
    before = page.evaluate(state_of)
    box = page.locator(".viewer .view").nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    page.mouse.wheel(0, -300)
    page.wait_for_function("!document.querySelector('.viewer .told').textContent.startsWith('100%')")
    zoomed = page.evaluate(state_of)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 8, box["y"] + box["height"] / 8, steps=3)
    page.mouse.up()
    page.wait_for_timeout(100)
    moved = page.evaluate(state_of)
    for arm in range(3):
        assert len({before[arm], zoomed[arm], moved[arm]}) == 3
    for _ in range(4):
        page.keyboard.press("+")
    page.keyboard.press("0")
    page.wait_for_function("document.querySelector('.viewer .told').textContent.startsWith('100%')")
    assert page.evaluate(state_of) == before


def test_the_viewer_follows_a_running_comparison(page):
    set_slider(page, "Steps", 30)
    page.click("#run")
    page.wait_for_selector(".stage[data-state=running] .mosaic img")
    cell(page, 2, 1).click()
    picture = "document.querySelectorAll('.viewer canvas')[2].toDataURL()"
    before = page.evaluate(picture)
    page.wait_for_function(f"before => {picture} !== before", arg=before)
    state(page, "done")
    page.wait_for_timeout(200)
    shown, original = page.evaluate(script("pixels"), [2, 2, 1, SIDE])
    assert shown == original


@pytest.mark.parametrize("images", [1, 5])
def test_any_number_of_images(page, images):
    run(page, images=images)
    assert page.locator(".arm").first.locator(".cells button").count() == images
    cell(page, 1, images - 1).click()
    for key in "1234":
        page.keyboard.press(key)
        assert page.locator(".viewer canvas").first.is_visible()
    assert page.inner_text(".viewer h2") == f"Seed {7 + images - 1}"


# --- the trace ---


def test_the_trace_grows_with_the_run_and_nothing_moves(page):
    place = "(({x, y, width, height}) => [x, y + scrollY, width, height])(document.querySelector('.arms').getBoundingClientRect())"
    empty = page.evaluate(place)
    set_slider(page, "Steps", 20)
    page.click("#run")
    count = "document.querySelector('.trace polyline.aig')?.getAttribute('points').split(' ').length ?? 0"
    page.wait_for_function(f"{count} >= 2")
    early = page.evaluate(count)
    page.wait_for_function(f"{count} > {early}")
    state(page, "done")
    assert page.evaluate(place) == empty
    dashes = page.evaluate(
        "['base', 'tuned', 'aig'].map((k) => getComputedStyle(document.querySelector(`.trace polyline.${k}`)).strokeDasharray)"
    )
    assert len(set(dashes)) == 3
    spoken = page.locator(".trace > svg").get_attribute("aria-label")
    assert "at step 20 of 20: Base 0." in spoken and "AIG 0." in spoken
    page.click("#run")
    page.wait_for_selector(".stage[data-state=running]")
    page.wait_for_function(f"{count} < 5")  # a new run, a new trace
    page.click("#stop")


# --- links and pictures ---


def drop(page, content: bytes, name="picture.png"):
    """Let go of a file over the middle of the page."""
    page.evaluate(script("drop"), [base64.b64encode(content).decode(), name])


def said(page, text, kind="good"):
    page.wait_for_selector(f".said.open[data-kind={kind}]")
    page.wait_for_function("text => document.querySelector('.said p').textContent.includes(text)", arg=text)
    assert page.locator(".said img, .said script").count() == 0


def settings(page) -> dict:
    return {
        "prompt": page.input_value("#prompt :is(input, textarea)"),
        "schedule": page.input_value("#schedule input[type=text]"),
        "seed": page.input_value("#seeds input[type=number]"),
        "steps": page.get_by_label("number input for Steps").input_value(),
        "images": page.get_by_label("number input for Images").input_value(),
        "closed": page.is_checked("#closed input"),
        "kl": page.inner_text("#kl label.selected"),
    }


CHOSEN = {
    "prompt": "a <b>red</b> é ~ + person!", "schedule": "points:0,0;0.4,0.1;1,1", "seed": "21", "steps": "5", "images": "4",
    "closed": True, "kl": "2",
}  # fmt: skip


def choose(page):
    page.fill("#prompt :is(input, textarea)", CHOSEN["prompt"])
    page.fill("#schedule input[type=text]", CHOSEN["schedule"])
    page.fill("#seeds input[type=number]", CHOSEN["seed"])
    page.check("#closed input")
    page.click("#kl label:has-text('2')")
    run(page, 5, 4)


def test_a_link_restores_every_setting_in_another_browser(app, page, browser):
    assert "run=" not in page.url
    choose(page)
    page.wait_for_function("location.search.includes('run=v1!')")
    assert "__theme=light" in page.url
    other = browser.new_context().new_page()
    troubles = watch(other, app[0])
    other.goto(page.url)
    other.wait_for_function("document.querySelector('#seeds input[type=number]')?.value === '21'")
    assert settings(other) == CHOSEN
    other.wait_for_function("t => document.querySelector('.asked q').textContent.includes(t)", arg=CHOSEN["prompt"])
    other.click("#run")
    state(other, "done")
    same = "[...document.querySelectorAll('.mosaic img')].map((picture) => picture.src)"
    assert other.evaluate(same) == page.evaluate(same)
    other.context.close()
    assert troubles == []


def test_copy_link_copies_it_or_shows_it(page):
    choose(page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click(".player .copy")
    said(page, "copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert links.decode(parse_qs(urlsplit(copied).query)["run"][0]) == Request(
        prompt=CHOSEN["prompt"], schedule=CHOSEN["schedule"], seed=21, steps=5, images=4, closed=True, kl=2.0
    )
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.click(".player .copy")
    said(page, "Copy this link")
    assert page.input_value(".said input") == copied


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ("v0!seed=1", "v0"), ("", "''"), ("v1!seed=1e9", "1e9"), ("v1!guidance=nan", "nan"), ("v1!images=99", "99"),
        ("v1!kl=0.123", "0.123"), ("v1!schedule=powder", "powder"), ("v1!evil=1", "evil"), ("v1!seed=" + "9" * 9000, "999"),
        ("v1!prompt=%3Cimg+src=x+onerror=alert(1)%3E", "<img"), ("v1!%3Cscript%3Ealert(1)%3C/script%3E=1", "<script>"),
    ],
)  # fmt: skip
def test_a_bad_link_is_explained_and_the_defaults_stand(app, page, link, reason):
    before = settings(page)
    open_page(page, app[0], query=f"&run={link}")
    said(page, reason, "bad")
    assert "the page shows its defaults" in page.inner_text(".said") and settings(page) == before


def test_a_saved_picture_restores_its_settings_when_dropped(app, page, browser):
    choose(page)
    with page.expect_download() as download:
        page.click(".player .save")
    content = Path(download.value.path()).read_bytes()
    assert download.value.suggested_filename == "aig-seed-21.png"
    assert Image.open(io.BytesIO(content)).size[0] > 800
    other = browser.new_context().new_page()
    troubles = watch(other, app[0])
    open_page(other, app[0])
    drop(other, content)
    said(other, "restored")
    other.wait_for_function("document.querySelector('#seeds input[type=number]')?.value === '21'")
    other.wait_for_function("document.querySelector('#closed input').checked")
    assert settings(other) == CHOSEN
    other.context.close()
    assert troubles == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no PNG"), (b"GIF89a" + b"0" * 40, "no PNG"), (png(None), "no settings"), (png("v1!seed=9")[:50], "broken"),
        (png("v9!seed=1"), "v9"), (png("v1!prompt=<b>"), "<b>"), (png('{"seed": 1}'), "seed"), (png("v1!images=400"), "400"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 60, "broken"), (bytes(31_000_000), "31 MB"),
    ],
    ids=["empty", "gif", "plain", "cut", "version", "markup", "json", "range", "length", "huge"],
)  # fmt: skip
def test_a_picture_that_holds_no_settings_is_explained(page, content, reason):
    before = settings(page)
    drop(page, content)
    said(page, reason, "bad")
    assert settings(page) == before


# --- the recorded run ---


@pytest.fixture(scope="module")
def recorded(make_pipe, lora_file):
    """The address of an app that opens on a recorded run and has one of the second example."""
    recordings = [replay.record(lambda: tiny_model(make_pipe(), lora_file), Request(prompt=prompt)) for prompt in replay.EXAMPLES[:2]]
    pipe = make_pipe()
    slowed(pipe, STEP)
    with served(lambda: tiny_model(pipe, lora_file), recordings) as url:
        yield url


@pytest.fixture
def opened(recorded, browser):
    """A page on which nothing is open yet."""
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    troubles = watch(page, recorded)
    yield page
    page.close()
    assert troubles == []


def test_the_page_opens_with_pictures_and_plays_once(recorded, opened):
    opened.goto(recorded)
    opened.reload()  # the second visit: the page's own scripts are known, as they are on stage
    opened.wait_for_selector("button:has-text('Run')")
    ready = opened.evaluate("performance.now()")
    opened.wait_for_selector(".mosaic img")
    painted = opened.evaluate("performance.now()")
    assert painted < 1.5 * ready, (
        f"the page is there after {ready:.0f} ms, its first picture after {painted:.0f} ms"
    )  # see tests/benchmarks
    assert "Recorded, press Run for a live one." in opened.inner_text(".player")
    state(opened, "done")
    opened.wait_for_timeout(700)
    assert opened.get_attribute(".stage", "data-state") == "done"
    assert opened.get_attribute(".player .play", "aria-label") == "Play" and "run=" not in opened.url


def test_the_replay_can_be_paused_and_scrubbed(recorded, opened):
    opened.goto(recorded)
    opened.wait_for_selector(".player .play[aria-pressed=true]")
    opened.click(".player .play")
    paused = opened.inner_text(".progress span")
    opened.wait_for_timeout(800)
    assert opened.inner_text(".progress span") == paused
    opened.focus(".player input")
    opened.keyboard.press("Home")
    for step in range(1, Request().steps):  # the keys stay with the slider, however often the page is drawn again
        opened.wait_for_function(f"document.querySelector('.progress span').textContent === 'Step {step} of {Request().steps}'")
        opened.keyboard.press("ArrowRight")
    state(opened, "done")
    opened.keyboard.press("Home")
    opened.wait_for_function(f"document.querySelector('.progress span').textContent === 'Step 1 of {Request().steps}'")
    box = opened.locator(".player input").bounding_box()
    opened.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    state(opened, "done")


def test_less_motion_shows_the_end_at_once(recorded, opened):
    opened.emulate_media(reduced_motion="reduce")
    opened.goto(recorded)
    state(opened, "done")
    assert opened.get_attribute(".player .play", "aria-pressed") == "false"


def test_run_ends_the_replay_and_its_steps_can_be_scrubbed(recorded, opened):
    opened.goto(recorded)
    opened.wait_for_selector(".player .play[aria-pressed=true]")
    opened.click("#run")
    assert opened.get_attribute(".player .play", "aria-pressed") == "false"
    opened.wait_for_selector(".stage[data-kind=live][data-state=running] .mosaic img")
    assert opened.is_disabled(".player input")
    opened.wait_for_selector(".stage[data-kind=live][data-state=done]", timeout=30_000)
    final = opened.get_attribute(".mosaic img", "src")
    opened.focus(".player input")
    opened.keyboard.press("Home")
    opened.wait_for_function(f"document.querySelector('.progress span').textContent === 'Step 1 of {Request().steps}'")
    assert opened.get_attribute(".stage", "data-kind") == "live" and opened.is_enabled("#run")
    opened.keyboard.press("End")
    opened.wait_for_function("src => document.querySelector('.mosaic img').src === src", arg=final)


def test_an_example_plays_its_recorded_run(recorded, opened):
    opened.goto(recorded)
    state(opened, "done")
    opened.click(f"#examples button:has-text('{replay.EXAMPLES[1]}')")
    opened.wait_for_function("text => document.querySelector('.asked q').textContent === text", arg=replay.EXAMPLES[1])
    assert opened.get_attribute(".stage", "data-kind") == "recorded"
    state(opened, "done")
    with opened.expect_download() as download:
        opened.click(".player .save")
    assert links.decode(export.settings_of(Path(download.value.path()).read_bytes())) == Request(prompt=replay.EXAMPLES[1])


def test_an_example_without_a_recorded_run_or_with_other_settings_sets_the_prompt_alone(recorded, opened):
    opened.goto(recorded)
    state(opened, "done")
    for change, example in ((None, replay.EXAMPLES[2]), ("closed", replay.EXAMPLES[1])):
        if change:
            opened.click(f"#{change} input")
        opened.click(f"#examples button:has-text('{example}')")
        opened.wait_for_function("text => document.querySelector('#prompt textarea, #prompt input').value === text", arg=example)
        opened.wait_for_timeout(600)
        assert opened.inner_text(".asked q") == replay.EXAMPLES[0]


def test_an_example_leaves_a_run_alone_and_plays_after_it(recorded, opened):
    opened.goto(recorded)
    opened.click("#run")
    opened.wait_for_selector(".stage[data-kind=live][data-state=running] .mosaic img")
    opened.click(f"#examples button:has-text('{replay.EXAMPLES[1]}')")
    opened.wait_for_selector(".stage[data-kind=live][data-state=done]", timeout=30_000)
    assert opened.inner_text(".asked q") == replay.EXAMPLES[0]
    opened.click(f"#examples button:has-text('{replay.EXAMPLES[1]}')")
    opened.wait_for_selector(".stage[data-kind=recorded][data-state=done]")
    assert opened.inner_text(".asked q") == replay.EXAMPLES[1] and opened.is_enabled(".player .play")


def test_a_link_does_not_replay(recorded, opened):
    opened.goto(f"{recorded}/?run=v1!prompt=a+robot!kl=0")
    state(opened, "idle")
    opened.wait_for_timeout(600)
    assert opened.inner_text(".asked q") == "a robot" and opened.locator(".mosaic img").count() == 0


def test_the_recorded_run_is_saved_as_it_is(recorded, opened):
    opened.goto(recorded)
    opened.wait_for_selector(".mosaic img")
    with opened.expect_download() as download:
        opened.click(".player .save")
    assert links.decode(export.settings_of(Path(download.value.path()).read_bytes())) == Request(prompt=replay.EXAMPLES[0])


# --- the presenter mode ---


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1280, 720)])
def test_the_presenter_mode_fills_the_screen_without_scrolling(page, width, height):
    page.set_viewport_size({"width": width, "height": height})
    run(page)
    small = page.locator(".mosaic").first.bounding_box()
    page.locator("body").press("p")
    page.wait_for_selector("body.presenter")
    page.wait_for_timeout(200)
    scrolls = "(e) => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1"
    assert not page.evaluate(f"({scrolls})(document.documentElement)") and not page.evaluate(f"({scrolls})(document.body)")
    boxes = [mosaic.bounding_box() for mosaic in page.locator(".mosaic").all()]
    assert all(b["width"] == pytest.approx(b["height"], abs=1) and b["y"] + b["height"] <= height for b in boxes)
    assert all(b["width"] > 1.05 * small["width"] and b["width"] > 0.48 * height for b in boxes)
    assert not page.is_visible("#settings") and page.is_visible("#run") and page.is_visible("#prompt")
    assert page.inner_text(".schedule-name") == "power_2"
    assert page.evaluate(script("inside"))
    assert page.evaluate("[...document.querySelectorAll('.scores > div')].every((e) => e.scrollWidth <= e.clientWidth + 1)")
    assert all(page.locator(name).bounding_box()["y"] < 58 for name in ("#prompt", "#run", "#stop"))
    page.keyboard.press("Escape")
    page.wait_for_selector("body:not(.presenter)")
    assert page.is_visible("#settings")


def test_p_is_only_a_letter_while_typing(page):
    page.click("#prompt :is(input, textarea)")
    page.keyboard.type("p")
    assert not page.evaluate("document.body.classList.contains('presenter')")
    page.get_by_role("button", name="Presenter mode").click()
    page.wait_for_selector("body.presenter")
    page.get_by_role("button", name="Presenter mode").click()
    page.wait_for_selector("body:not(.presenter)")
