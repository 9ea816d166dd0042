from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aig.method import schedules
from aig.method.schedules import FORMS, PRESETS, Schedule, parse

numbers = st.floats(0, 1, allow_nan=False)
names = st.one_of(
    st.sampled_from(PRESETS),
    st.floats(0.01, 100).map(lambda p: f"power_{p}"),
    numbers.map(lambda f: f"step_{f}"),
    st.floats(0, 3).map(lambda w: f"constant_{w}"),
    st.tuples(st.floats(0.1, 100), numbers).map(lambda km: f"sigmoid_{km[0]}_{km[1]}"),
    st.tuples(st.dictionaries(st.integers(1, 999), numbers, max_size=6), st.booleans()).map(
        lambda drawn: "points:0,0;" + "".join(f"{x / 1000},{y};" for x, y in sorted(drawn[0].items())) + "1,1" + ";linear" * drawn[1]
    ),
)


@given(names)
def test_name_round_trip(name: str) -> None:
    schedule = parse(name)
    assert parse(schedule.name) == schedule
    assert [parse(schedule.name)(i / 7) for i in range(8)] == [schedule(i / 7) for i in range(8)]


@given(names, numbers)
def test_share_stays_in_range(name: str, progress: float) -> None:
    assert 0 <= parse(name)(progress) <= (3 if name.startswith("constant") else 1)


@given(names.filter(lambda name: not name.startswith("points")), numbers, numbers)
def test_share_never_falls(name: str, a: float, b: float) -> None:
    low, high = parse(name)(min(a, b)), parse(name)(max(a, b))
    assert low <= high + 1e-12


def test_canonical_names() -> None:
    spellings = {
        "power_2.0": "power_2",
        " Linear ": "linear",
        "step_.60": "step_0.6",
        "sigmoid_12_0.50": "sigmoid_12_0.5",
        "constant_1e-1": "constant_0.1",
        "points:0,0; 0.50,0.2;1,1": "points:0,0;0.5,0.2;1,1",
        "points:0,0;1,1.0;linear": "points:0,0;1,1;linear",
    }
    assert {text: parse(text).name for text in spellings} == spellings
    assert all(parse(name).name == name for name in PRESETS)


def test_official_schedules_by_their_formulas() -> None:
    for steps in (1, 4, 10, 25, 50):
        formulas = {
            "base": [0.0] * steps,
            "draft": [1.0] * steps,
            "linear": [i / steps for i in range(steps)],
            "power_2": [(i / steps) ** 2 for i in range(steps)],
            "power_4": [(i / steps) ** 4 for i in range(steps)],
            "step_0.6": [1.0 if i / steps >= 0.6 else 0.0 for i in range(steps)],
        }
        assert {name: list(schedules.shares(name, steps)) for name in formulas} == formulas


def test_own_schedules_by_hand() -> None:
    assert parse("cosine")(0.5) == pytest.approx(0.5)
    assert parse("cosine")(0.25) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert parse("sigmoid_12_0.5")(0.5) == pytest.approx(0.5)
    assert parse("constant_2.5")(0.3) == 2.5
    assert parse("points:0,0;0.5,0.2;1,1;linear")(0.25) == pytest.approx(0.1)
    assert parse("points:0,0;0.5,0.2;1,1")(0.5) == pytest.approx(0.2)
    assert parse("points:0,0.3;1,0.3")(0.7) == pytest.approx(0.3)


@given(st.lists(numbers, min_size=2, max_size=8), numbers)
def test_drawn_curve_stays_between_neighbouring_points(ys: list[float], progress: float) -> None:
    last = len(ys) - 1
    curve = parse("points:" + ";".join(f"{i / last},{y}" for i, y in enumerate(ys)))
    i = min(int(progress * last), last - 1)
    around = [ys[j] for j in range(max(i - 1, 0), min(i + 3, last + 1))]  # a neighbour more: progress * last is rounded
    assert min(around) - 1e-9 <= curve(progress) <= max(around) + 1e-9


@pytest.mark.parametrize("name", ["linear", "cosine", "power_0.01", "power_2", "power_4", "step_1", "sigmoid_12_0.5"])
@pytest.mark.parametrize("steps", [1, 2, 4, 25])
def test_closed_end_reaches_one(name: str, steps: int) -> None:
    assert schedules.shares(name, steps, closed=True)[-1] == 1.0


@given(st.floats(0.01, 100), st.integers(1, 1000))
def test_reference_end_of_power_never_reaches_one(power: float, steps: int) -> None:
    shares = schedules.shares(f"power_{power}", steps)
    assert shares[0] == 0 and max(shares) < 1


@given(st.floats(0.01, 50), st.floats(0.01, 50), st.integers(2, 100))
def test_larger_exponent_means_more_base(p: float, extra: float, steps: int) -> None:
    small, large = schedules.shares(f"power_{p}", steps), schedules.shares(f"power_{p + extra}", steps)
    assert sum(large) < sum(small)
    assert all(b <= a for a, b in zip(small, large))


REFUSED = [
    "", " ", "_", "power", "power_", "power_x", "power_nan", "power_inf", "power_1e999", "power_-2", "power_0",
    "power_101", "power_2_3", "power_1_0", "power_２", "power_2\x00", "step_2", "step_-0.1", "constant_3.1",
    "sigmoid_12", "sigmoid_0_0.5", "sigmoid_12_2", "linear_2", "unknown", "points:", "points:0,0", "points:0,0;1",
    "points:0,0;1,2", "points:0.1,0;1,1",
    "points:0,0;0.9,1", "points:0,0;0.6,0.5;0.4,0.6;1,1", "points:0,0;0.5,0;0.5,1;1,1", "points:0,0;0.5,nan;1,1",
    "points:0,0;1,1;spline", "points:linear", "power_" + "9" * 10**6, "x" * 10**6, "points:" + "0,0;" * 10**5,
    None, 2.0, ["linear"],
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text)[:40])
def test_refusal_is_one_sentence_with_value_and_choices(text: object) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    message = str(caught.value)
    assert repr(text)[:60] in message
    assert FORMS in message or "must go from x = 0 to x = 1" in message
    assert "\n" not in message and len(message) < 400


@given(st.text(max_size=30))
@settings(max_examples=300)
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        assert isinstance(parse(text), Schedule)
    except ValueError as error:
        assert repr(text)[:60] in str(error)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True, "4", None])
def test_steps_are_checked(steps: object) -> None:
    with pytest.raises(ValueError, match="steps must be an integer from 1 to 1000"):
        schedules.shares("linear", steps)
