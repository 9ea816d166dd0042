"""The control that adds columns: what it offers, and the note under it with the price and source of what was chosen."""

from __future__ import annotations

from dataclasses import replace

from aig import columns
from aig.facts import Facts
from aig.plan import Plan
from aig.request import Request
from aig.ui.render import escape

HINT = f"Up to {columns.MAX_EXTRA}. Parameters can be typed: lora:0.3, cads:0.2, step:0.4:unguided, code:3"


def choices(facts: Facts, request: Request) -> list[tuple[str, str]]:
    """(title, text) of the columns on offer, with the model's own KL coefficients."""
    texts = [text for kind in columns.KINDS for text in columns.examples(kind, facts.tunings[request.tuning])]
    return [(columns.title(text), text) for text in texts]


def note(facts: Facts, request: Request) -> str:
    """One entry a chosen column: what it does, what it adds to the run, and where it comes from; or why there is none."""
    try:
        Plan.of(request, facts)
    except ValueError as problem:
        return f'<p class="added wrong" role="alert">{escape(problem)}</p>' if request.columns else ""
    entries = ""
    texts = sorted(request.columns, key=lambda text: columns.parse(text).kind == "code")  # as they stand and are coloured
    plans = [_with(facts, request, *texts[:i]) for i in range(len(texts) + 1)]
    for text, before, after in zip(texts, plans, plans[1:]):
        more = after.cost - before.cost
        price = f"{more:,} more model evaluations" if more else "no more model evaluations, another column has them"
        title, known = columns.title(text), columns.KINDS[columns.parse(text).kind]
        entries += (
            f"<li><b>{escape(title)}</b>: {escape(known.rule)}. <span>{price}</span> <cite>{escape(known.source)}</cite></li>"
        )
    return f'<ul class="added">{entries}</ul>' if entries else ""


def _with(facts: Facts, request: Request, *texts: str) -> Plan:
    return Plan.of(replace(request, columns=texts), facts)
