"""The endpoints that list what the app offers; the one that runs something is ``Runs.compare``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import gradio as gr

from aig import columns, schedules
from aig.models import Model
from aig.request import Request, checked, cost


def listings(model: Model) -> dict[str, Callable[..., dict]]:
    """Endpoint name -> function, for ``gr.api``, which reads their signatures and docstrings."""

    def models() -> dict:
        """The models that this app serves, with what a request may ask of each.

        Answers, for every model, with the rewards it was tuned on and the KL coefficients of each, the longest prompt in words, the size of its
        images in pixels, the attributes (and their values) that are counted when the prompt leaves them open, and its rewards.
        """
        size = model.pipe.unet.config.sample_size * model.pipe.vae_scale_factor
        return {
            model.name: {
                "tunings": {reward: list(known) for reward, known in model.tunings.items()},
                "max_words": model.max_words,
                "size": size,
                "attributes": {name: list(values) for name, values in model.values.items()},
                "rewards": list(model.rewards),
            }
        }

    def rewards() -> dict:
        """The rewards by name, and the part each plays: models were tuned on it, or it is held out."""
        tuned, judge = "models were tuned on it", "held out: no model was tuned on it"
        return {name: tuned if name in model.tunings else judge for name in model.rewards}

    def columns_api(steps: int = Request.steps, images: int = Request.images, guidance: float = Request.guidance) -> dict:
        """The kinds of columns that can be added beside base, reward-tuned and AIG.

        Answers, for every kind, with the form of its text (a capital letter stands for what is to be chosen), the range, the
        rule, the source, and for each example the model rows that it adds to a run.

        Parameters:
            steps: denoising steps of the run, 1 to 100.
            images: of a column, 1 to 16.
            guidance: classifier-free guidance scale, 0 to 20, off up to 1.
        """
        run = Request(steps=steps, images=images, guidance=guidance)
        known = model.tunings[run.reward]
        run = replace(run, kl=known[0])
        try:
            checked(run, model)
        except ValueError as problem:
            raise gr.Error(str(problem), print_exception=False) from problem
        return {
            name: {
                "form": kind.form,
                "choices": kind.choices,
                "rule": kind.rule,
                "source": kind.source,
                "cost": f"model rows an image at T steps with guidance: {kind.cost}",
                "examples": {text: cost(replace(run, columns=(text,))) - cost(run) for text in columns.examples(name, known)},
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
        shares = {name: schedules.weights(named[name], steps, closed=closed is True) for name in named}
    except ValueError as problem:
        raise gr.Error(str(problem), print_exception=False) from problem
    return {"presets": shares, "forms": schedules.CHOICES}
