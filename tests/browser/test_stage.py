"""The stage in a real browser: one seed in every column, the trace, links, dropped pictures, the replay, the presenter mode."""

from __future__ import annotations

import pytest

from tests.browser.driving import set_slider, state

# The colours in the middle of every image pixel of a canvas, and of one cell of a mosaic, as rows of [r, g, b].
PIXELS = """
([pane, arm, cell, side]) => {
  const read = (source, size, at) => {
    const canvas = new OffscreenCanvas(source.width ?? source.naturalWidth, source.height ?? source.naturalHeight);
    const pen = canvas.getContext("2d");
    pen.drawImage(source, 0, 0);
    return [...Array(size * size).keys()].map((k) => [...pen.getImageData(...at(k % size, Math.floor(k / size)), 1, 1).data].slice(0, 3));
  };
  const shown = document.querySelectorAll(".viewer canvas")[pane], block = shown.width / side;
  const picture = document.querySelectorAll(".mosaic img")[arm], across = picture.naturalWidth / side;
  const mosaic = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
  mosaic.getContext("2d").drawImage(picture, 0, 0);
  return [
    read(shown, side, (x, y) => [Math.floor((x + 0.5) * block), Math.floor((y + 0.5) * block)]),
    read(mosaic, side, (x, y) => [(cell % across) * side + x, Math.floor(cell / across) * side + y]),
  ];
}
"""
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
        shown, original = page.evaluate(PIXELS, [arm, arm, 2, SIDE])
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
    shown, original = page.evaluate(PIXELS, [0, 1, 1, SIDE])
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
        pictures = [page.evaluate(PIXELS, [0, arm, 3, SIDE]) for arm in range(3)]
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
    shown, base = page.evaluate(PIXELS, [0, 0, 5, SIDE])
    _, tuned = page.evaluate(PIXELS, [0, 1, 5, SIDE])
    expected = [[min(255, 4 * abs(p - q)) for p, q in zip(a, b, strict=True)] for a, b in zip(base, tuned, strict=True)]
    assert shown == expected and any(map(any, expected))
    assert "×4" in page.inner_text(".viewer figcaption") and "amplified 4 times" in page.inner_text(".viewer .told")


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
    shown, original = page.evaluate(PIXELS, [0, 1, 0, SIDE])
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
    shown, original = page.evaluate(PIXELS, [2, 2, 1, SIDE])
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
