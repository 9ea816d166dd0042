"""The schedule control: a text, the curve editor that draws it, and what only the server can say of it."""

from __future__ import annotations

import gradio as gr

from aig.method import schedules
from aig.runs.facts import Facts
from aig.runs.plan import Plan
from aig.runs.request import MAX_SCHEDULE, Request
from aig.ui.markup import source
from aig.ui.shell import front

LABELS = {"step_0.6": "step 0.6", "sigmoid_12_0.5": "sigmoid", "constant_0.5": "constant", "draft": "tuned"}
LIMITS = {"points": schedules.MAX_POINTS, "gap": schedules.MIN_GAP, "text": MAX_SCHEDULE}


def editor(model: Facts, default: Request) -> gr.HTML:
    """The curve editor; its value is a schedule's text.

    The browser draws and edits without the server. A changed value is a ``change`` event; ``submit`` asks for a run, if
    "Run on change" is ticked. Its property ``facts`` is what ``facts`` answers.
    """
    props = {
        "presets": [(name, LABELS.get(name, name.replace("_", " "))) for name in schedules.PRESETS],
        "limits": LIMITS,
        "facts": facts(model, default),
    }
    return front.part("curve", default.schedule, template=source("parts/curve.html"), elem_id="schedule", props=props)


def facts(model: Facts, request: Request) -> dict:
    """What the editor shows beside the curve of a request: its real steps and the cost, or the one sentence of refusal.

    ``drawn`` tells whether the schedule itself is valid, whatever else is wrong.
    """
    try:
        rows = Plan.of(request, model).cost
    except ValueError as problem:
        return {"problem": str(problem), "drawn": is_schedule(request.schedule)}
    return {"steps": request.steps, "closed": request.closed, "cost": f"{rows:,} model evaluations", "drawn": True}


def is_schedule(text: object) -> bool:
    """Whether a run takes this text for a schedule."""
    try:
        return isinstance(text, str) and len(text) <= MAX_SCHEDULE and bool(schedules.parse(text))
    except ValueError:
        return False
