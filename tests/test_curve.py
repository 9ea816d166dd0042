"""The schedule control: text, preset and exponent mean the same thing."""

from __future__ import annotations

import pytest

from aig import schedules
from aig.request import Request
from aig.ui import curve
from tests.serving import tiny_model


@pytest.mark.parametrize("name", schedules.PRESETS)
def test_every_preset_is_recognised(name):
    assert curve.preset_of(name) == name


@pytest.mark.parametrize(
    ("text", "preset"),
    [
        ("power_2.0", "power_2"), (" POWER_1 ", "linear"), ("power_3", None), ("nonsense", None), (None, None), (7, None),
        ("a" * 9999, None),
    ],
)  # fmt: skip
def test_preset_of_any_text(text, preset):
    assert curve.preset_of(text) == preset


@pytest.mark.parametrize("exponent", [0.25, 1, 1.75, 2, 8])
def test_the_exponent_survives_the_round_trip_through_the_text(exponent):
    assert curve.exponent_of(curve.text_of(exponent)) == exponent


@pytest.mark.parametrize("text", ["sigmoid_12_0.5", "base", "nonsense", None])
def test_other_schedules_leave_the_exponent_where_it_is(text):
    assert curve.exponent_of(text) == curve.text_of(None)


@pytest.mark.parametrize(
    "change",
    [{"schedule": "nonsense"}, {"schedule": None}, {"steps": None}, {"images": "x"}, {"guidance": None}, {"closed": 1}],
)
def test_what_cannot_be_drawn_is_said(pipe, lora_file, change):
    model = tiny_model(pipe, lora_file)
    assert "polyline" in curve.draw(model, Request())
    drawing = curve.draw(model, Request(**change))
    assert "polyline" not in drawing and 'role="alert"' in drawing
