"""What the controls offer for a model, and their values for a request."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import gradio as gr

from aig.runs.facts import Facts
from aig.runs.request import Request
from aig.ui.compare import added
from aig.ui.markup import escape

FIELDS = tuple(field.name for field in dataclasses.fields(Request))
SPOKEN = {"vivid": "vividness"}


def request_of(*settings: Any) -> Request:
    """The request with these values, in the order of its fields; nothing is checked yet."""
    return Request(**dict(zip(FIELDS, settings, strict=True)))


def refused(problem: Exception) -> gr.Error:
    """A refusal as the page shows it: what it says, as text."""
    return gr.Error(str(escape(problem)), print_exception=False)


def settled(facts: Facts, name: str = "") -> Request:
    """A request with a model's own defaults; name: as the request names it."""
    first = next(iter(facts.tunings))
    values: dict[str, Any] = {"model": name, "tuning": first, "kl": facts.tunings[first][0], **facts.defaults}
    return Request(**values)


def tunings(facts: Facts, tuning: str) -> dict:
    """The settings of the control that chooses the tuned model; it hides where there is one only."""
    choices = [(SPOKEN.get(name, name), name) for name in facts.tunings]
    return {"choices": choices, "value": tuning, "info": facts.notes.get(tuning), "visible": len(choices) > 1 or bool(facts.notes)}


def strengths(facts: Facts, tuning: object, kl: float | None = None) -> dict:
    """The settings of the KL control for a tuned model; unknown ones show what the first has."""
    known = facts.tunings.get(tuning if isinstance(tuning, str) else "", next(iter(facts.tunings.values())))
    return {
        "choices": [(f"{value:g}", value) for value in known],
        "value": known[0] if kl is None else kl,
        "info": None if len(known) > 1 else "This model was tuned at one strength only.",
        "interactive": len(known) > 1,
    }


def columns(facts: Facts, request: Request) -> dict:
    """The settings of the control that adds columns."""
    return {"choices": added.choices(facts, request), "value": list(request.columns)}


def models(facts: Facts, name: str, titles: Sequence[tuple[str, str]]) -> dict:
    """The settings of the control that chooses the model; titles: (title, name) of those on offer. It hides where there is one only."""
    choices = dict(titles)
    value = choices.setdefault(facts.title, name)  # a visitor's own model joins them
    return {"choices": list(choices.items()), "value": value, "info": facts.about, "visible": len(choices) > 1}


def settings(facts: Facts, request: Request, titles: Sequence[tuple[str, str]]) -> dict[str, dict]:
    """Field of a request -> the settings of its control, for a checked request."""
    plain = {name: {"value": getattr(request, name)} for name in FIELDS}
    return plain | {
        "model": models(facts, request.model, titles),
        "tuning": tunings(facts, request.tuning),
        "kl": strengths(facts, request.tuning, request.kl),
        "columns": columns(facts, request),
    }
