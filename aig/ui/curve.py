"""The schedule control: one text, and what follows from it: the drawing, its cost, a preset, a position of the exponent."""

from __future__ import annotations

import gradio as gr

from aig import schedules
from aig.engine import MAX_SCHEDULE
from aig.ui import render


def cost(shares: tuple[float, ...], images: int, guidance: float) -> int:
    """Model rows of a run with columns base, tuned and AIG: what has not parted yet is computed once (``aig.guidance``)."""
    rows, like_base, like_tuned = 0, True, True
    for g in shares:
        rows += 2 + (g != 1 and not like_base) + (g != 0 and not like_tuned)
        like_base, like_tuned = like_base and g == 0, like_tuned and g == 1
    return rows * images * (2 if guidance > 1 else 1)


def draw(text: str, steps: int, closed: bool, images: int, guidance: float) -> str:
    """The curve as an SVG figure, or the empty axes with the reason."""
    try:
        schedule = schedules.parse(text[: MAX_SCHEDULE + 1])
        rows = cost(schedules.weights(schedule, steps, closed=closed), images, guidance)
        return render.curve(schedule, steps, closed=closed, cost=f"{rows:,} model rows")
    except ValueError as problem:
        return render.no_curve(str(problem))


def preset_of(text: str) -> str | None:
    """The preset that a schedule text stands for, None if it is none."""
    try:
        name = schedules.parse(text[: MAX_SCHEDULE + 1]).name
    except ValueError:
        return None
    name = "linear" if name == "power_1" else name
    return name if name in schedules.PRESETS else None


def exponent_of(text: str) -> float | dict:
    """The position of the exponent slider for a schedule text; it stays where it is if that is not a power."""
    try:
        family, _, number = schedules.parse(text[: MAX_SCHEDULE + 1]).name.partition("_")
    except ValueError:
        return gr.skip()
    return 1.0 if family == "linear" else float(number) if family == "power" else gr.skip()
