"""The control that adds columns: what it offers, and the note under it with the price and source of what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aig.runs import columns
from aig.runs.facts import Facts
from aig.runs.plan import Plan
from aig.runs.request import Request
from aig.ui.markup import fill

HINT = f"Up to {columns.MAX_EXTRA}. Parameters can be typed: lora:0.3, cads:0.2, step:0.4:unguided, code:3"


def choices(facts: Facts, request: Request) -> list[tuple[str, str]]:
    """(title, text) of the columns on offer, with the model's own KL coefficients."""
    texts = [text for kind in columns.KINDS for text in columns.examples(kind, facts.tunings[request.tuning])]
    return [(columns.title(text), text) for text in texts]


def note(facts: Facts, request: Request) -> str:
    """One entry a chosen column: what it does, what it adds to the run, and where it comes from; or why there is none."""
    problem, entries = "", []
    try:
        Plan.of(request, facts)
    except ValueError as refusal:
        problem = str(refusal) if request.columns else ""
    else:
        texts = sorted(request.columns, key=lambda text: columns.parse(text).kind == "code")  # as they stand and are coloured
        entries = [_entry(texts[:i], text, facts, request) for i, text in enumerate(texts)]
    return str(fill("compare/added.html", {"problem": problem, "entries": entries}))


def _entry(before: Sequence[str], text: str, facts: Facts, request: Request) -> dict[str, str]:
    """A column and what it adds to a run that has the columns ``before`` it."""
    known = columns.KINDS[columns.parse(text).kind]
    less, more = (Plan.of(replace(request, columns=tuple(chosen)), facts).cost for chosen in (before, (*before, text)))
    return {
        "title": columns.title(text),
        "rule": known.rule,
        "price": f"{more - less:,} more model evaluations" if more > less else "no more model evaluations, another column has them",
        "source": known.source,
    }
