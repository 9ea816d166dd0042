"""The schedule control: what the server says of a curve."""

from __future__ import annotations

import json

import pytest

from aig.method import schedules
from aig.runs.plan import Plan
from aig.runs.request import MAX_SCHEDULE, Request
from aig.ui.parts import curve
from tests.serving import TINY


@pytest.mark.parametrize("text", [*schedules.PRESETS, "power_2.0", " POWER_1 ", "points:0,0;0.4,0.1;1,1;linear"])
def test_what_parses_is_a_schedule(text):
    assert curve.is_schedule(text)


@pytest.mark.parametrize("text", ["nonsense", "", None, 7, ["linear"], "a" * 10**6, "power_2" + " " * MAX_SCHEDULE])
def test_anything_else_is_none(text):
    assert not curve.is_schedule(text)


def test_the_longest_curve_that_can_be_drawn_is_short_enough_to_run():
    points = [(i / 10_000, 0.1234) for i in range(1, 9_999, 160)][: schedules.MAX_POINTS - 2]
    text = "points:" + ";".join(f"{x:.4f},{y}" for x, y in [(0, 0.1234), *points, (1, 0.1234)]) + ";linear"
    assert text.count(",") == schedules.MAX_POINTS and curve.is_schedule(text)


@pytest.mark.parametrize("steps", [1, 4, 16])
@pytest.mark.parametrize("closed", [False, True])
def test_the_facts_of_a_good_request(steps, closed):
    request = Request(steps=steps, closed=closed, columns=("code:2",))
    facts, rows = curve.facts(TINY, request), Plan.of(request, TINY).cost
    assert facts == {"steps": steps, "closed": closed, "cost": f"{rows:,} model evaluations", "drawn": True}


@pytest.mark.parametrize(
    ("change", "drawn"),
    [
        ({"schedule": "nonsense"}, False), ({"schedule": None}, False), ({"schedule": "x" * 10**6}, False),
        ({"steps": None}, True), ({"images": "x"}, True), ({"guidance": None}, True), ({"closed": 1}, True),
        ({"images": 16, "steps": 100}, True),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence_that_json_can_carry(change, drawn):
    facts = curve.facts(TINY, Request(**change))
    assert facts.keys() == {"problem", "drawn"} and facts["drawn"] is drawn
    assert 10 < len(facts["problem"]) < 500 and "\n" not in facts["problem"]
    json.dumps(facts)
