"""The control that adds columns: what it offers can be run, and its note states rule, price and source."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aig.runs import columns
from aig.runs.plan import Plan
from aig.runs.request import Request
from aig.ui.compare import added
from tests.serving import TINY
from tests.ui.test_render import HOSTILE, parse

REQUEST = Request(images=2, steps=4)


def test_everything_on_offer_can_be_run_and_every_kind_is_on_offer():
    offered = added.choices(TINY, REQUEST)
    assert len({title for title, _ in offered}) == len(offered)
    for _, text in offered:
        Plan.of(replace(REQUEST, columns=(text,)), TINY)
    assert {columns.parse(text).kind for _, text in offered} == set(columns.KINDS)


def test_the_note_states_rule_price_and_source():
    request = replace(REQUEST, columns=("code:3", "lora:1"))
    note = parse(added.note(TINY, request)).text
    known = columns.KINDS["code"]
    more = Plan.of(replace(REQUEST, columns=("code:3",)), TINY).cost - Plan.of(REQUEST, TINY).cost
    assert "CoDe 3" in note and known.rule in note and known.source in note and f"{more} more model evaluations" in note
    assert "LoRA scale 1" in note and "no more model evaluations" in note
    assert added.note(TINY, REQUEST) == ""


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_column_is_said_and_stays_text(text):
    note = parse(added.note(TINY, replace(REQUEST, columns=(text,))))
    assert note.tags == {"p"} and "unknown" in note.text
