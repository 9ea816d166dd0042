"""One comparison: the columns of a request sampled in step and judged at every preview, as updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch

from aig import sampling
from aig.columns import Column
from aig.controlled import best_of
from aig.models import Model
from aig.plan import Plan
from aig.sampling import Frame, sample
from aig.scores import Scores, score


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


def compare(
    model: Model,
    beginning: Update,
    put: Callable[[Update], None],
    stopped: Callable[[], bool],
    *,
    preview_share: float,
) -> Update:
    """Run the plan of ``beginning`` on a model that is prepared for it; ``put`` receives the previews, the result is returned.

    preview_share: of the model's time, for previews with their scores; see ``sampling.sample``. Raises Stopped soon after
    ``stopped()`` is true, FloatingPointError when the images are not finite.
    """
    plan, request, done = beginning.plan, beginning.plan.request, None
    begun = replace(beginning, state="running")
    put(begun)

    def update(frame: Frame) -> Update:
        return replace(
            begun,
            state="done" if frame.step == plan.steps else "running",
            step=frame.step,
            images=(frame.images * 255).round().byte().permute(0, 1, 3, 4, 2).contiguous().numpy(),
            scores=judge(model, plan, frame),
            rows=frame.rows,
            seconds=frame.seconds,
            left=frame.seconds / frame.rows * (plan.cost - frame.rows),
        )

    def show(frame: Frame) -> None:
        put(update(frame.beside(done) if done else frame))

    asked = {
        "prompt": request.prompt,
        "seeds": list(request.seeds),
        "steps": request.steps,
        "guidance": request.guidance,
        "tuned": model.twin(request.tuning, request.kl, request.lora_scale),
        "on_frame": show,
        "stop": stopped,
        "preview_share": preview_share,
        "size": model.size,
        "budget": model.budget(),
    }
    done = sample(model.pipe, trajectories(model, plan), **asked)
    for column in plan.columns:
        if column.candidates > 1:
            put(update(done))
            done = best_of(model.pipe, candidates=column.candidates, reward=model.rewards[plan.proxy], **asked).beside(done)
    return replace(update(done), left=0.0)


def trajectories(model: Model, plan: Plan) -> list[sampling.Column]:
    """The columns that are sampled side by side, with their tuned models: one for all steps, or one whose LoRA scale moves."""
    moving = cache(partial(model.moving, plan.request.tuning))  # one further copy of the weights for each KL coefficient

    def tuned(column: Column) -> list | None:
        scales = [a for a, g in zip(column.scales, column.shares) if g]
        if not scales:
            return None  # the base model alone
        if column.steady:
            return [model.twin(plan.request.tuning, column.kl, scales[0])] * len(column.shares)
        return [moving(column.kl)(scale) for scale in column.scales]

    return [
        sampling.Column(name=column.title, weights=column.shares, tuned=tuned(column), guided=column.guided, noise=column.noise)
        for column in plan.columns
        if column.candidates == 1
    ]


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
