"""The Compare page in a real browser: a run, Stop, a closed tab, hostile prompts, and every screen it must fit."""

from __future__ import annotations

import time

import pytest

from aig.published import offers
from aig.runs.request import Request
from tests.browser.driving import STEP, open_page, script, set_slider, state, watch
from tests.serving import served, tiny_model

SCREENS = [(390, 844), (768, 1024), (1366, 768), (1920, 1080)]


def test_a_run_fills_three_grids_with_the_same_seeds(page):
    before = page.locator(".arms").bounding_box()
    page.click("#run")
    page.wait_for_selector(".stage[data-state=running] .mosaic img")
    assert page.is_enabled("#stop") and page.is_disabled("#run")
    state(page, "done")
    after = page.locator(".arms").bounding_box()
    assert (before["y"], before["height"]) == pytest.approx((after["y"], after["height"]), abs=1)  # nothing jumped
    pictures = page.locator(".mosaic img")
    assert pictures.count() == 3
    assert all("9 images for a person with glasses" in picture.get_attribute("alt") for picture in pictures.all())
    assert all(picture.evaluate("p => p.naturalWidth") == 48 for picture in pictures.all())
    assert page.locator(".scores dd").count() == 12 and "–" not in page.locator(".arms").inner_text()
    assert page.locator(".attribute").count() == 9  # ten, less the glasses that the prompt names
    assert page.is_enabled("#run") and page.is_disabled("#stop")
    assert f"{Request().steps} steps" in page.inner_text(".progress")


def test_stop_ends_the_run_within_a_step_and_keeps_what_was_reached(app, page):
    _, calls = app
    set_slider(page, "Steps", 50)
    page.click("#run")
    page.wait_for_selector(".stage[data-state=running] .mosaic img")
    page.click("#stop")
    state(page, "stopped")
    at_stop = len(calls)
    time.sleep(8 * STEP)
    assert len(calls) <= at_stop + 1
    assert page.locator(".mosaic img").count() == 3 and page.is_enabled("#run")
    set_slider(page, "Steps", 4)
    page.click("#run")
    state(page, "done")


def test_a_closed_tab_ends_its_run(app, page):
    _, calls = app
    set_slider(page, "Steps", 50)
    page.click("#run")
    page.wait_for_selector(".stage[data-state=running] .mosaic img")
    page.close()
    started = len(calls)
    time.sleep(20 * STEP)
    reached = len(calls)
    time.sleep(10 * STEP)
    assert len(calls) == reached < started + 40


@pytest.mark.parametrize(
    "prompt",
    [
        "<img src=x onerror=alert(1)>",
        "${alert(1)}",
        "`${alert(1)}`",
        "{{alert(1)}}",
        "'-alert(1)-'",
        "\\`",
        '"><script>alert(1)</script>',
    ],
)
def test_a_prompt_is_only_ever_text(page, prompt):
    set_slider(page, "Steps", 4)
    page.fill("#prompt input, #prompt textarea", prompt)
    page.keyboard.press("Enter")
    state(page, "done")
    assert page.inner_text(".asked q").strip("“”") == prompt
    assert page.locator(".stage img:not(.mosaic img), .stage script").count() == 0


def test_unknown_words_are_named(page):
    set_slider(page, "Steps", 4)
    page.fill("#prompt input, #prompt textarea", "a person with a xylophone")
    page.click("#run")
    state(page, "done")
    assert "“xylophone”" in page.inner_text(".notice") and "person" not in page.inner_text(".notice")


def test_a_refusal_is_shown_and_changes_nothing(page):
    page.fill("#schedule input[type=text]", "powder_2")
    page.wait_for_function("document.querySelector('.curve .wrong').textContent.includes('powder_2')")
    before = page.inner_html(".stage")
    page.click("#run")
    page.get_by_test_id("toast-body").wait_for()
    assert "powder_2" in page.get_by_test_id("toast-body").inner_text()
    assert page.inner_html(".stage") == before and page.is_enabled("#run")


def test_the_dice_changes_the_seed(page):
    seed = page.locator("#seeds input[type=number]")
    before = seed.input_value()
    page.get_by_role("button", name="Roll a new seed").click()
    page.wait_for_function(f"document.querySelector('#seeds input[type=number]').value !== '{before}'")
    assert seed.input_value().isdigit()


def test_a_seed_that_is_not_locked_is_new_in_every_run(page):
    set_slider(page, "Steps", 4)
    seed, seen = page.locator("#seeds input[type=number]"), []
    for locked in (True, True, False, False):
        page.get_by_label("Lock").set_checked(locked)
        page.click("#run")
        state(page, "running")
        state(page, "done")
        assert f"seeds {seed.input_value()} to" in page.inner_text(".asked")
        seen.append(seed.input_value())
    assert seen[0] == seen[1] == "7" and len(set(seen)) == 3


def test_another_model_brings_its_own_controls_and_scores(page):
    page.locator("#model input").click()
    page.get_by_role("option", name="Plain").click()
    page.wait_for_function("document.querySelector('#tuning')?.innerText.includes('dpo')")
    assert "6.9 GB" in page.inner_text("#model") and page.get_by_label("number input for Steps").input_value() == "6"
    assert page.locator("#kl input").count() == 1 and "one strength only" in page.inner_text("#kl")
    page.click("#run")
    state(page, "done")
    assert page.locator(".attribute").count() == 0
    assert [name.inner_text() for name in page.locator(".arm.base dt").all()][:2] == ["PickScore", "ImageReward"]
    link = page.get_attribute(".stage", "data-link")
    page.goto(page.url.split("?")[0] + f"?run={link}")
    state(page, "idle")
    page.wait_for_function("document.querySelector('#tuning')?.innerText.includes('dpo')")


def test_a_model_of_ones_own_is_named_in_a_form_that_refuses_what_names_none(browser, make_pipe, lora_file):
    with served(lambda: tiny_model(make_pipe(), lora_file), find=offers.finder((), own=True)) as url:
        page = browser.new_page()
        troubles = watch(page, url)
        open_page(page, url)
        page.locator("#own button").first.click()
        page.get_by_label("Base model").fill("../secret")
        page.get_by_label("Tuned model", exact=True).fill("./lora")
        page.get_by_label("LoRA file").fill("a.safetensors")
        page.click("#use")
        page.get_by_test_id("toast-body").wait_for()
        assert "'../secret' is not a model id" in page.get_by_test_id("toast-body").inner_text()
        page.get_by_label("Base model").fill("./sd")
        page.click("#use")
        page.wait_for_function("document.querySelector('#model input')?.value === './sd'")
        page.click("#run")
        state(page, "stopped")
        assert "AIG_MODELS" in page.inner_text(".notice")
        page.close()
        assert troubles == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_it_fits_the_screen(app, page, width, height, theme):
    page.set_viewport_size({"width": width, "height": height})
    open_page(page, app[0], theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [arm.bounding_box() for arm in page.locator(".arm").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    side_by_side = len({box["y"] for box in boxes}) == 1
    assert side_by_side == (width >= 768)
    if width >= 1366:  # the whole of the grids is in sight without scrolling
        assert all(box["y"] + box["height"] <= height for box in boxes)


def test_cells_are_crisp_exactly_at_whole_scales(page):
    set_slider(page, "Steps", 4)
    page.click("#run")
    state(page, "done")
    for width, style in ((96, "pixelated"), (100, "auto"), (144, "pixelated"), (150, "auto"), (288, "pixelated")):
        page.add_style_tag(content=f".mosaic {{ width: {width}px !important }}")  # 48 pixels wide by itself
        page.wait_for_function("style => getComputedStyle(document.querySelector('.mosaic img')).imageRendering === style", arg=style)


def test_focus_is_visible_and_the_switch_of_lights_works(page):
    for _ in range(3):
        page.keyboard.press("Tab")
        width = page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")
        assert width >= 2, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
    colours = script("colours")
    light = page.evaluate(colours)
    page.get_by_role("button", name="light and dark").click()
    dark = page.evaluate(colours)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    page.get_by_role("button", name="light and dark").click()
    assert page.evaluate(colours) == light


def test_a_model_with_one_lora_says_why_kl_is_fixed(browser, make_pipe, lora_file):
    with served(lambda: tiny_model(make_pipe(), lora_file, kl=(0.5,))) as url:
        page = browser.new_page()
        open_page(page, url)
        assert page.locator("#kl input").is_disabled()
        assert "one strength only" in page.inner_text("#kl")
        page.close()
