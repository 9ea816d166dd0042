"""The endpoints that list what the app offers; the one that runs something is ``Runs.compare``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import gradio as gr

from aig.method import schedules
from aig.runs import columns
from aig.runs.engine import Engine
from aig.runs.facts import Facts
from aig.runs.plan import Plan
from aig.runs.request import Request
from aig.ui.compare.controls import settled


def listings(engine: Engine, offered: Sequence[Facts]) -> dict[str, Callable[..., dict]]:
    """Endpoint name -> function, for ``gr.api``, which reads their signatures and docstrings."""
    first = engine.facts()

    def models() -> dict:
        """The models that this app serves, with what a request may ask of each.

        Answers, for every model, with its tuned models and the KL coefficients of each, the longest prompt in words, the size of its
        images in pixels, the precision that was chosen for it on this machine, the attributes (and their values) that are counted
        when the prompt leaves them open, its rewards, and the settings in which its defaults differ.
        """
        return {
            facts.name: {
                "title": facts.title,
                "about": facts.about,
                "tunings": {name: list(known) for name, known in facts.tunings.items()},
                "max_words": facts.max_words,
                "size": facts.size,
                "precision": facts.precision,
                "attributes": {name: list(values) for name, values in facts.values.items()},
                "rewards": list(facts.rewards),
                "defaults": dict(facts.defaults),
            }
            for facts in (first, *offered)
        }

    def rewards() -> dict:
        """The rewards by name, and the part each plays: it stands for what models were tuned on, or it is held out."""
        models = (first, *offered)
        tuned = {facts.proxy(name) for facts in models for name in facts.tunings}
        names = dict.fromkeys(name for facts in models for name in facts.rewards)
        role = "shown for tuned models, as what they were tuned on or the nearest to it"
        return {name: role if name in tuned else "held out" for name in names}

    def columns_api(steps: int = Request.steps, images: int = Request.images, guidance: float = Request.guidance, model: str = "") -> dict:
        """The kinds of columns that can be added beside base, reward-tuned and AIG.

        Answers, for every kind, with the form of its text (a capital letter stands for what is to be chosen), the range, the
        rule, the source, and for each example the model evaluations that it adds to a run.

        Parameters:
            steps: denoising steps of the run, 1 to 100.
            images: of a column, 1 to 16.
            guidance: classifier-free guidance scale, 0 to 20, off up to 1.
            model: one of those that /models lists; empty for the one that the app starts with.
        """
        try:
            facts = engine.facts(model)
            run = replace(settled(facts), steps=steps, images=images, guidance=guidance)
            alone = Plan.of(run, facts).cost
        except ValueError as problem:
            raise gr.Error(str(problem), print_exception=False) from problem
        return {
            name: {
                "form": kind.form,
                "choices": kind.choices,
                "rule": kind.rule,
                "source": kind.source,
                "cost": f"model evaluations an image at T steps with guidance: {kind.cost}",
                "examples": {
                    text: Plan.of(replace(run, columns=(text,)), facts).cost - alone
                    for text in columns.examples(name, facts.tunings[run.tuning])
                },
            }
            for name, kind in columns.KINDS.items()
        }

    return {"schedules": schedules_api, "models": models, "rewards": rewards, "columns": columns_api}


def schedules_api(steps: int = Request.steps, closed: bool = False) -> dict:
    """The named schedules with their share of the tuned model at every step, and all forms that a schedule may take.

    Parameters:
        steps: denoising steps, 1 to 100.
        closed: end the schedules at 1 instead of one step before.
    """
    named = {name: schedules.parse(name) for name in schedules.PRESETS}
    try:
        shares = {name: schedules.shares(named[name], steps, closed=closed is True) for name in named}
    except ValueError as problem:
        raise gr.Error(str(problem), print_exception=False) from problem
    return {"presets": shares, "forms": schedules.FORMS}
