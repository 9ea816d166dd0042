"""The control that adds columns: what it offers, and the note under it with the price and source of what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aig import columns
from aig.models import Facts
from aig.request import Request, checked, cost, recipes
from aig.ui.markup import fill

HINT = f"Up to {columns.MAX_EXTRA}. Parameters can be typed: lora:0.3, cads:0.2, step:0.4:unguided, code:3"


def choices(facts: Facts, request: Request) -> list[tuple[str, str]]:
    """(title, text) of the columns on offer, with the model's own KL coefficients."""
    texts = [text for kind in columns.KINDS for text in columns.examples(kind, facts.tunings[request.tuning])]
    return [(recipes(replace(request, columns=(text,)))[-1].title, text) for text in texts]


def note(facts: Facts, request: Request) -> str:
    """One entry a chosen column: what it does, what it adds to the run, and where it comes from; or why there is none."""
    problem, entries = "", []
    try:
        checked(request, facts)
    except ValueError as refusal:
        problem = str(refusal) if request.columns else ""
    else:
        texts = sorted(request.columns, key=lambda text: columns.parse(text).kind == "code")  # as they stand and are coloured
        entries = [_entry(texts[:i], text, facts, request) for i, text in enumerate(texts)]
    return str(fill("compare/added.html", {"problem": problem, "entries": entries}))


def _entry(before: Sequence[str], text: str, facts: Facts, request: Request) -> dict[str, str]:
    """A column and what it adds to a run that has the columns ``before`` it."""
    known = columns.KINDS[columns.parse(text).kind]
    rows = [cost(replace(request, columns=tuple(chosen)), facts) for chosen in (before, (*before, text))]
    more = rows[1] - rows[0]
    return {
        "title": recipes(replace(request, columns=(text,)))[-1].title,
        "rule": known.rule,
        "price": f"{more:,} more model evaluations" if more else "no more model evaluations, another column has them",
        "source": known.source,
    }
