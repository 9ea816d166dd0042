"""One comparison: the columns of a plan sampled in step and judged at every preview, as a generator of updates."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from aig.measures.scores import Scores, score
from aig.method.code import Code
from aig.method.frames import Frame, Settings
from aig.method.sampling import Trajectory, sample
from aig.runs.columns import BLOCK, Column
from aig.runs.models import Model
from aig.runs.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Update:
    """One moment of a run."""

    state: str  # waiting, loading, running or done
    plan: Plan
    note: str = ""  # what is being loaded
    place: int = 0  # in the queue, 1 = next
    step: int = 0  # 1 to the steps of the plan
    images: np.ndarray | None = None  # (columns so far, N, H, W, 3) uint8
    scores: Scores | None = None  # of the columns so far
    rows: int = 0  # model evaluations so far
    seconds: float = 0.0
    left: float | None = None  # seconds, estimated


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The job of comparing the columns of a plan."""

    plan: Plan
    preview_share: float = 0.05  # of the model's time, that previews with their scores may take

    @property
    def model(self) -> str:
        """The name of the model that it needs."""
        return self.plan.request.model

    @property
    def tuning(self) -> str:
        """The tuned model that it needs."""
        return self.plan.request.tuning

    def update(self, state: str, **found: Any) -> Update:
        """A moment of the job."""
        return Update(state=state, plan=self.plan, **found)

    def run(self, model: Model) -> Generator[Update | None]:
        """The updates of a run on a model that is prepared for it, and None after steps of which none is shown.

        A step is shown when previews, their reader included, have cost at most ``preview_share`` of the model's time so far, so the
        first always is. Raises FloatingPointError when the images are not finite.
        """
        yield self.update("running")
        start, spent = time.perf_counter(), 0.0
        for frame in sample(model.pipe, samplers(model, self.plan), settings(model, self.plan)):
            now = time.perf_counter()
            due = spent <= self.preview_share * (now - start - spent) or frame.step % self.plan.request.steps == 0
            yield self._shown(model, frame) if due else None
            spent += time.perf_counter() - now

    def _shown(self, model: Model, frame: Frame) -> Update:
        return self.update(
            "done" if frame.step == self.plan.steps else "running",
            step=frame.step,
            images=(frame.images * 255).round().byte().permute(0, 1, 3, 4, 2).contiguous().numpy(),
            scores=judge(model, self.plan, frame),
            rows=frame.rows,
            seconds=frame.seconds,
            left=frame.seconds / frame.rows * (self.plan.cost - frame.rows),
        )


def settings(model: Model, plan: Plan) -> Settings:
    """What the columns of a plan have in common."""
    asked = plan.request
    return Settings(
        prompt=asked.prompt, seeds=asked.seeds, steps=asked.steps, guidance=asked.guidance, size=model.size, budget=model.budget()
    )


def samplers(model: Model, plan: Plan) -> list[Trajectory | Code]:
    """The columns of a plan with their tuned models: one for all steps, or one whose LoRA scale moves."""
    moving = cache(partial(model.moving, plan.request.tuning))  # one further copy of the weights for each KL coefficient
    twin = partial(model.twin, plan.request.tuning)

    def sampler(column: Column) -> Trajectory | Code:
        if column.candidates > 1:
            return Code(
                candidates=column.candidates, reward=model.rewards[plan.proxy], block=BLOCK, tuned=twin(column.kl, column.scales[0])
            )
        used = [a for a, g in zip(column.scales, column.shares) if g]
        if column.steady:  # the base model alone needs a twin as well, which says how to reach the base
            tuned = twin(column.kl, used[0] if used else column.scales[0])
        else:
            tuned = [moving(column.kl)(scale) for scale in column.scales]
        return Trajectory(name=column.title, shares=column.shares, tuned=tuned, guided=column.guided, noise=column.noise)

    return [sampler(column) for column in plan.columns]


@torch.no_grad()
def judge(model: Model, plan: Plan, frame: Frame) -> Scores:
    """The reward that tuning saw, the held-out one, diversity and open attributes of a frame's columns, the first of the plan's."""
    if not torch.isfinite(frame.images).all():
        raise FloatingPointError(f"the images of step {frame.step} are not finite")
    columns, n = frame.images.shape[:2]
    flat, prompt = frame.images.flatten(0, 1), plan.request.prompt
    features, classes = model.measure(flat)
    rewards = {name: model.rewards[name](flat, [prompt] * len(flat)).float().cpu() for name in plan.judges}
    return score(
        [(column.role, column.title) for column in plan.columns[:columns]],
        features.float().unflatten(0, (columns, n)),
        {name: values.unflatten(0, (columns, n)) for name, values in rewards.items()},
        {name: classes[name].unflatten(0, (columns, n)) for name in plan.facts.open_attributes(prompt)},
        plan.facts.values,
        proxy=plan.proxy,
    )
