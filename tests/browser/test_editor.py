"""The curve editor in a real browser: mouse, keys, touch, presets, hostile text, and the run that uses the curve."""

from __future__ import annotations

import re

import pytest

from aig.method import schedules
from aig.runs.plan import Plan
from aig.runs.request import Request
from tests.browser.driving import open_page, script, set_slider, state, watch
from tests.serving import TINY

TEXT = "#schedule input[type=text]"
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 12, 24  # the margins of the plot


class Editor:
    """What a person sees of the editor and does with it; places are (progress, share)."""

    def __init__(self, page, field: str = TEXT) -> None:
        self.page, self.field = page, field
        page.locator(".curve .plot").scroll_into_view_if_needed()

    @property
    def text(self) -> str:
        return self.page.input_value(self.field)

    @property
    def name(self) -> str:
        return self.page.inner_text(".curve .name")

    @property
    def points(self) -> list[tuple[float, float]]:
        texts = [handle.get_attribute("aria-valuetext") for handle in self.page.locator(".handle").all()]
        found = [re.fullmatch(r"progress ([\d.]+)%, share ([\d.]+)%", text).groups() for text in texts]
        return [(float(x) / 100, float(y) / 100) for x, y in found]

    def at(self, progress: float, share: float) -> tuple[float, float]:
        box = self.page.locator(".curve .plot").bounding_box()
        x = box["x"] + LEFT + progress * (box["width"] - LEFT - RIGHT)
        return x, box["y"] + box["height"] - BOTTOM - share * (box["height"] - TOP - BOTTOM)

    def write(self, text: str) -> None:
        self.page.fill(self.field, text)
        self.settle()

    def drag(self, start: tuple[float, float], end: tuple[float, float], *, drop: bool = True) -> None:
        self.page.locator(".curve .plot").scroll_into_view_if_needed()
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(*end), steps=5)
        if drop:
            self.page.mouse.up()
            self.settle()

    def settle(self) -> None:
        """Wait until the curve has been drawn and has stopped moving."""
        self.page.evaluate(script("settled"))


@pytest.fixture
def editor(page):
    return Editor(page)


def test_the_mouse_adds_moves_and_removes_points_on_the_grid(editor):
    editor.write("linear")
    assert editor.points == [(0, 0), (1, 1)]
    editor.page.mouse.click(*editor.at(0.41, 0.12))
    assert editor.text == "points:0,0;0.4,0.1;1,1" and editor.name == "drawn curve"
    editor.drag((0.4, 0.1), (0.61, 0.68))
    assert editor.text == "points:0,0;0.6,0.7;1,1"
    editor.drag((0.6, 0.7), (1.3, 2))  # beyond the neighbour and the edge
    assert editor.text == "points:0,0;0.99,1;1,1"
    editor.page.click(".curve .undo")
    editor.settle()
    editor.page.mouse.dblclick(*editor.at(0.6, 0.7))
    assert editor.text == "points:0,0;1,1" and editor.name == "linear"


def test_the_ends_move_up_and_down_only(editor):
    editor.write("linear")
    editor.drag((0, 0), (0.5, 0.3))
    editor.drag((1, 1), (0.2, 0.9))
    assert editor.text == "points:0,0.3;1,0.9"
    editor.page.mouse.dblclick(*editor.at(0, 0.3))
    assert editor.text == "points:0,0.3;1,0.9"


def test_alt_moves_freely(editor):
    editor.write("points:0,0;0.5,0.5;1,1")
    editor.page.keyboard.down("Alt")
    editor.drag((0.5, 0.5), (0.333, 0.777))
    editor.page.keyboard.up("Alt")
    (_, (x, y), _) = editor.points
    assert x == pytest.approx(0.333, abs=0.006) and y == pytest.approx(0.777, abs=0.006)
    assert round(x / 0.05, 6) % 1 and round(y / 0.05, 6) % 1


def test_escape_returns_to_where_the_drag_began(editor):
    editor.write("power_2")
    before = editor.points
    editor.drag(before[1], (0.6, 0.9), drop=False)
    assert editor.text.startswith("points:")
    editor.page.keyboard.press("Escape")
    editor.page.mouse.up()
    editor.settle()
    assert editor.text == editor.name == "power_2" and editor.points == before


def test_a_click_on_a_point_changes_nothing(editor):
    editor.write("points:0,0;0.43,0.21;1,1")
    editor.page.mouse.click(*editor.at(0.43, 0.21))
    assert editor.text == "points:0,0;0.43,0.21;1,1"
    assert editor.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Point 2 of 3"


def test_the_keyboard_draws_a_curve(editor):
    page = editor.page
    editor.write("linear")
    page.locator(".handle").first.focus()
    page.keyboard.press("Insert")  # midway to the next point
    assert editor.points == [(0, 0), (0.5, 0.5), (1, 1)]
    for key in ("ArrowLeft", "Shift+ArrowLeft", "Shift+ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    assert editor.text == "points:0,0;0.39,0.4;1,1"
    page.keyboard.press("+")
    assert len(editor.points) == 4
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Point 3 of 4"
    page.keyboard.press("Delete")
    assert editor.text == "points:0,0;0.39,0.4;1,1"
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    editor.settle()
    assert len(editor.points) == 3
    page.keyboard.press("Control+y")
    editor.settle()
    assert len(editor.points) == 4
    page.locator(".handle").last.focus()
    page.keyboard.press("Control+z")  # takes the held point away
    editor.settle()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Point 3 of 3"
    page.keyboard.press("Control+y")
    editor.settle()
    labels = []
    page.locator(".handle").first.focus()
    for _ in range(3):
        labels.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        page.keyboard.press("Tab")
    assert labels == ["Point 1 of 4", "Point 2 of 4", "Point 3 of 4"]
    assert page.evaluate("document.activeElement.getAttribute('role')") == "slider"


def test_a_focused_point_is_seen_and_read(editor):
    editor.write("points:0,0;0.4,0.1;1,1")
    editor.page.locator(".handle").first.focus()
    editor.page.keyboard.press("Tab")
    assert editor.page.inner_text(".curve .readout") == "progress 40% · share 0.10"
    halo = editor.page.locator(".handle:focus-visible .halo")
    assert halo.evaluate("h => getComputedStyle(h).stroke") != "none" and float(halo.get_attribute("r")) >= 10


def test_neighbours_keep_their_distance_and_there_are_at_most_64_points(editor):
    page = editor.page
    editor.write("points:0,0;0.01,0;0.02,0;1,1")
    page.locator(".handle").nth(1).focus()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    assert editor.points[1] == (0.01, 0)
    editor.write("points:" + ";".join(f"{i / 62},0.5" for i in range(63)))
    page.locator(".handle").nth(5).focus()
    page.keyboard.press("Insert")
    assert len(editor.points) == 63  # no room there
    editor.write("points:" + ";".join(f"{i / 100},0.5" for i in range(62)) + ";1,0.5")
    page.locator(".handle").nth(61).focus()
    page.keyboard.press("Insert")
    assert len(editor.points) == 64
    page.keyboard.press("Insert")
    assert len(editor.points) == 64 and page.inner_text(".curve .readout") == "64 points are the most"
    assert len(schedules.parse(editor.text).name.split(";")) == 64


def test_presets_are_named_and_morph(editor):
    page = editor.page
    assert page.locator(".presets button").count() == len(schedules.PRESETS)
    for name, button in zip(schedules.PRESETS, page.locator(".presets button").all(), strict=True):
        button.click()
        assert editor.text == editor.name == name
        assert button.get_attribute("aria-pressed") == "true"
        assert page.locator(".presets [aria-pressed=true]").count() == 1
    editor.settle()
    assert page.evaluate(script("morphs"), 600) > 4


def test_presets_do_not_morph_when_motion_is_unwelcome(app, browser):
    page = browser.new_page(viewport={"width": 1366, "height": 768}, reduced_motion="reduce")
    open_page(page, app[0])
    assert page.evaluate(script("morphs"), 400) == 2
    page.close()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("points:0,0;1,1", "linear"), ("points:0,0;0.5,0.5;1,1;linear", "linear"), ("points:0,0;1,0", "base"),
        ("points:0,1;0.3,1;1,1", "draft"), ("points:0,0.5;1,0.5", "constant_0.5"),
        ("points:0,0.3;1,0.3", "constant_0.3"),
        ("points:0,0;0.5,0.25;1,1", "drawn curve"), ("power_1", "linear"), ("power_3.30", "power_3.3"),
    ],
)  # fmt: skip
def test_a_curve_that_has_a_name_shows_it(editor, text, name):
    editor.write(text)
    assert editor.name == name and editor.text == text


@pytest.mark.parametrize("text", ["points:0,0;0.4,0.1;1,1", "points:0,0.25;0.3,1;0.7,0.05;1,0.5;linear"])
def test_a_drawn_curve_survives_the_round_trip_through_its_text(editor, text):
    editor.write(text)
    points = [tuple(map(float, part.split(","))) for part in text[7:].removesuffix(";linear").split(";")]
    assert editor.points == points
    first = editor.page.locator(".handle").first
    first.focus()
    editor.page.keyboard.press("ArrowUp")
    editor.page.keyboard.press("ArrowDown")
    assert editor.text == text


def test_smooth_and_straight(editor):
    editor.write("points:0,0;0.4,0.1;1,1")
    assert editor.page.get_attribute(".curve .smooth", "aria-pressed") == "true"
    editor.page.click(".curve .straight")
    assert editor.text == "points:0,0;0.4,0.1;1,1;linear"
    assert editor.page.get_attribute(".curve .straight", "aria-pressed") == "true"
    editor.page.click(".curve .smooth")
    assert editor.text == "points:0,0;0.4,0.1;1,1"


def test_the_exponent_writes_the_text_and_follows_it(editor):
    slider = editor.page.get_by_role("slider", name="Exponent")
    assert slider.input_value() == "2"
    slider.focus()
    editor.page.keyboard.press("ArrowRight")
    assert editor.text == editor.name == "power_2.25"
    editor.write("sigmoid_12_0.5")
    editor.page.locator(TEXT).blur()
    assert slider.input_value() == "2.25"
    editor.write("power_4")
    assert slider.input_value() == "4"


def test_undo_and_redo_go_through_the_curves(editor):
    editor.page.click(".presets button:has-text('cosine')")
    editor.page.mouse.click(*editor.at(0.3, 0.75))
    drawn = editor.text
    editor.page.click(".curve .undo")
    assert editor.text == "cosine"
    editor.page.click(".curve .undo")
    assert editor.text == "power_2" and editor.page.is_disabled(".curve .undo")
    editor.page.click(".curve .redo")
    editor.page.click(".curve .redo")
    assert editor.text == drawn and editor.page.is_disabled(".curve .redo")


@pytest.mark.parametrize("closed", [False, True])
def test_a_dot_stands_at_the_share_of_every_real_step(editor, closed):
    page, text = editor.page, "points:0,0.2;0.4,0.1;1,1"
    set_slider(page, "Steps", 7)
    editor.write(text)
    page.locator("#closed input").set_checked(closed)
    last = 1 if closed else 6 / 7
    page.wait_for_function(script("dots_stand"), arg=[7, editor.at(last, 0)[0]])
    shares = schedules.shares(text, 7, closed=closed)
    for i, (share, dot) in enumerate(zip(shares, page.locator(".curve .dot").all(), strict=True)):
        box, (x, y) = dot.bounding_box(), editor.at(i / (7 - closed), share)
        assert (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) == pytest.approx((x, y), abs=0.6)


def test_the_cost_follows_the_curve_and_the_settings(editor):
    def shown(text: str, images: int) -> None:
        rows = Plan.of(Request(schedule=text, images=images), TINY).cost
        editor.page.wait_for_function(
            "cost => document.querySelector('.curve .cost').textContent === cost", arg=f"{rows:,} model evaluations"
        )

    shown("power_2", 9)
    editor.page.click(".presets button:has-text('base')")
    shown("base", 9)
    set_slider(editor.page, "Images", 4)
    shown("base", 4)
    editor.page.mouse.click(*editor.at(0.5, 0.5))
    shown(editor.text, 4)


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)>", "${alert(1)}", "`${alert(1)}`", "{{constructor}}",
        '"><script>alert(1)</script>',
        "constructor", "__proto__", "points:0,0;${alert(1)},1;1,1", "x" * 1_000_000,
        "<img src=x onerror=alert(1)>" * 35_000,
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_wrong_text_is_refused_in_one_sentence_and_changes_nothing_else(editor, text):
    page = editor.page
    editor.write("points:0,0;0.4,0.1;1,1")
    path = page.get_attribute(".curve .share", "d")
    page.locator(TEXT).evaluate(script("paste"), text)
    page.wait_for_function("document.querySelector('.curve .wrong').textContent.length > 10")
    sentence = page.inner_text(".curve .wrong")
    assert len(sentence) < 400 and (text[:20] in sentence or "1000000 characters" in sentence or "980000" in sentence)
    assert page.get_attribute(".curve .share", "d") == path
    assert page.get_attribute(TEXT, "aria-invalid") == "true"
    assert page.locator(".curve img, .curve script").count() == 0
    editor.write("linear")
    assert page.inner_text(".curve .wrong") == "" and editor.name == "linear"


def test_a_run_uses_the_drawn_curve(editor):
    page = editor.page
    set_slider(page, "Steps", 4)
    editor.write("linear")
    page.mouse.click(*editor.at(0.4, 0.1))
    page.click("#run")
    state(page, "done")
    assert "points:0,0;0.4,0.1;1,1" in page.inner_text(".arm.aig h3")


def test_run_on_change_runs_the_latest_curve_only_after_release(app, editor):
    page, (_, calls) = editor.page, app
    set_slider(page, "Steps", 12)
    editor.write("linear")
    editor.drag((0, 0), (0, 0.2))
    page.wait_for_timeout(300)
    assert page.locator(".stage[data-state=idle]").count() == 1  # off by default
    page.check(".curve .follow input")
    before = len(calls)
    editor.drag((0, 0.2), (0, 0.5), drop=False)
    page.wait_for_timeout(300)
    assert len(calls) == before
    page.mouse.up()
    page.wait_for_selector(".stage[data-state=running] .mosaic img")
    editor.drag((1, 1), (1, 0.8))  # while the first still runs
    page.wait_for_function("document.querySelector('.arm.aig h3').textContent.includes('points:0,0.5;1,0.8')")
    state(page, "done")
    assert "points:0,0.5;1,0.8" in page.inner_text(".arm.aig h3") and page.is_enabled("#run")


@pytest.fixture
def phone(app, browser):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    troubles = watch(page, app[0])
    open_page(page, app[0])
    yield page
    context.close()
    assert troubles == []


def swipe(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """One finger from start to end, as the browser itself gets it."""
    session = page.context.new_cdp_session(page)

    def send(kind: str, *places: tuple[float, float]) -> None:
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in places]})

    send("touchStart", start)
    for i in range(1, 9):
        send("touchMove", tuple(a + (b - a) * i / 8 for a, b in zip(start, end, strict=True)))
    send("touchEnd")
    page.wait_for_timeout(100)


def test_a_finger_adds_moves_and_removes_points(phone):
    editor = Editor(phone)
    editor.write("linear")
    phone.locator(TEXT).blur()
    phone.locator(".curve .plot").evaluate("plot => plot.scrollIntoView({ block: 'center' })")
    phone.touchscreen.tap(*editor.at(0.4, 0.8))
    assert editor.text == "points:0,0;0.4,0.8;1,1"
    x, y = editor.at(0.4, 0.8)
    away = editor.at(0.6, 0.5)
    swipe(phone, (x + 14, y - 12), (away[0] + 14, away[1] - 12))  # broad fingers: it comes as held
    assert editor.text == "points:0,0;0.6,0.5;1,1"
    for _ in range(2):
        phone.touchscreen.tap(*editor.at(0.6, 0.5))
    assert editor.text == "points:0,0;1,1"


def test_a_finger_beside_the_points_scrolls_the_page(phone):
    editor = Editor(phone)
    editor.write("linear")
    phone.locator(TEXT).blur()
    phone.locator(".curve .plot").evaluate("plot => plot.scrollIntoView({ block: 'center' })")
    before = phone.evaluate("scrollY")
    start = editor.at(0.5, 0.95)
    swipe(phone, start, (start[0], start[1] - 220))
    assert phone.evaluate("scrollY") > before + 100 and editor.text == "linear"


def test_points_can_be_held_by_a_finger(phone):
    phone.locator(".curve .plot").scroll_into_view_if_needed()
    assert all(box.bounding_box()["width"] >= 43.9 for box in phone.locator(".handle .hit").all())
    buttons = phone.locator(".curve .presets button, .curve .tools button").all()
    assert all(button.bounding_box()["height"] >= 40 for button in buttons)
