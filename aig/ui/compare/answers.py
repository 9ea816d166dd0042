"""What controls become when others change: another model, another tuned model, another price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from aig.published import offers
from aig.runs.engine import Engine
from aig.runs.facts import Facts
from aig.runs.request import Request
from aig.ui.compare import added, controls
from aig.ui.compare.controls import FIELDS, refused, request_of
from aig.ui.parts import curve

KEPT = {"prompt", "seed", "images", "schedule", "lora_scale"}  # when another model is chosen that has no default of its own


class Answers:
    """The handlers of one page's controls; titles: (title, name) of the models on offer."""

    def __init__(self, engine: Engine, titles: Sequence[tuple[str, str]]) -> None:
        self._engine, self._titles = engine, titles

    def switched(self, name: Any) -> list[dict]:
        """All controls, after another model was chosen."""
        facts = self._facts(name)
        settings = controls.settings(facts, controls.settled(facts, name), self._titles)
        kept = KEPT - set(facts.defaults)
        return [gr.skip() if field in kept else gr.update(**settings[field]) for field in FIELDS]

    def named(self, *form: object) -> list[dict]:
        """All controls, after a model of one's own was named in the form."""
        try:
            name = offers.own_name(form)
        except ValueError as problem:
            raise refused(problem) from problem
        return self.switched(name)

    def retuned(self, name: object, tuning: object) -> tuple[dict, dict]:
        """The strengths and the note of another tuned model."""
        facts = self._facts(name)
        note = facts.notes.get(tuning if isinstance(tuning, str) else "")
        return gr.update(**controls.strengths(facts, tuning)), gr.update(info=note)

    def described(self, *settings: object) -> tuple[dict, str]:
        """What the curve editor shows beside the curve, and the note on the added columns."""
        asked = replace(request_of(*settings), prompt="", seed=Request.seed)  # which change neither curve nor cost
        facts = self._facts(asked.model)
        return gr.update(facts=curve.facts(facts, asked)), added.note(facts, asked)

    def _facts(self, name: object) -> Facts:
        try:
            return self._engine.facts(name)
        except ValueError as problem:
            raise refused(problem) from problem
