"""The schedule control: one text, and what follows from it: a drawing, a cost, a preset, an exponent."""

from __future__ import annotations

import gradio as gr

from aig import schedules
from aig.request import MAX_SCHEDULE, Request, checked, cost
from aig.models import Model
from aig.ui import render


def draw(model: Model, request: Request) -> str:
    """The curve of a request as an SVG figure, or the empty axes with the reason."""
    try:
        checked(request, model)
        schedule = schedules.parse(request.schedule)
        return render.curve(schedule, request.steps, closed=request.closed, cost=f"{cost(request):,} model rows")
    except ValueError as problem:
        return render.no_curve(str(problem))


def text_of(exponent: object) -> str | dict:
    """The schedule text for a place of the exponent slider; none while its number is being typed."""
    return f"power_{exponent:g}" if isinstance(exponent, (int, float)) else gr.skip()


def chosen(preset: object) -> tuple[str | dict, float | dict]:
    """The schedule text and the place of the exponent slider for a preset that was picked."""
    return (preset, exponent_of(preset)) if preset_of(preset) else (gr.skip(), gr.skip())


def preset_of(text: object) -> str | None:
    """The preset that a schedule text stands for, None if it is none."""
    name = _name(text)
    name = "linear" if name == "power_1" else name
    return name if name in schedules.PRESETS else None


def exponent_of(text: object) -> float | dict:
    """The place of the exponent slider for a schedule text; it stays where it is if that is not a power."""
    family, _, number = _name(text).partition("_")
    return 1.0 if family == "linear" else float(number) if family == "power" else gr.skip()


def _name(text: object) -> str:
    """The canonical name of a schedule text, "" when it has none."""
    if not isinstance(text, str) or len(text) > MAX_SCHEDULE:
        return ""
    try:
        return schedules.parse(text).name
    except ValueError:
        return ""
