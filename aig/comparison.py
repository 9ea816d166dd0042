"""One comparison: the columns of a request sampled in step and judged at every preview, as updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch

from aig.columns import Recipe
from aig.controlled import best_of
from aig.models import Model
from aig.request import Request, cost, recipes
from aig.sampling import Column, Frame, sample
from aig.scores import Scores, score


@dataclass(frozen=True, kw_only=True)
class Update:
    """One moment of a run."""

    state: str  # waiting, loading, running or done
    request: Request
    shares: tuple[float, ...]  # of the tuned model in the AIG column, at each step
    judges: tuple[str, ...] = ()  # the rewards that its scores have
    note: str = ""  # what is being loaded
    place: int = 0  # in the queue, 1 = next
    step: int = 0  # of all passes: each CoDe column is sampled in one of its own, after the others
    steps: int = 0
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
    """Run the request of ``beginning`` on a model that is prepared for it; ``put`` receives the previews, the result is returned.

    preview_share: of the model's time, for previews with their scores; see ``sampling.sample``. Raises Stopped soon after
    ``stopped()`` is true, FloatingPointError when the images are not finite.
    """
    request, plan = beginning.request, recipes(beginning.request)
    together, alone = [r for r in plan if r.candidates == 1], [r for r in plan if r.candidates > 1]
    total, steps, done = cost(request, model.facts), request.steps * (1 + len(alone)), None
    begun = replace(beginning, state="running", steps=steps)
    put(begun)

    def update(frame: Frame) -> Update:
        titles = [recipe.title for recipe in plan[: len(frame.images)]]
        return replace(
            begun,
            state="done" if frame.step == steps else "running",
            step=frame.step,
            images=(frame.images * 255).round().byte().permute(0, 1, 3, 4, 2).contiguous().numpy(),
            scores=judge(model, titles, frame, request),
            rows=frame.rows,
            seconds=frame.seconds,
            left=frame.seconds / frame.rows * (total - frame.rows),
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
    done = sample(model.pipe, _columns(model, request.tuning, together), **asked)
    for recipe in alone:
        put(update(done))
        reward = model.rewards[model.facts.proxy(request.tuning)]
        done = best_of(model.pipe, candidates=recipe.candidates, reward=reward, **asked).beside(done)
    return replace(update(done), left=0.0)


def _columns(model: Model, tuning: str, together: list[Recipe]) -> list[Column]:
    """Recipes with their tuned models: one for all steps, or one whose LoRA scale moves."""
    moving = cache(partial(model.moving, tuning))  # one further copy of the weights for each KL coefficient
    columns = []
    for recipe in together:
        scales = [a for a, g in zip(recipe.scales, recipe.shares) if g]
        if not scales:
            tuned = None  # the base model alone
        elif recipe.steady:
            tuned = [model.twin(tuning, recipe.kl, scales[0])] * len(recipe.shares)
        else:
            tuned = [moving(recipe.kl)(scale) for scale in recipe.scales]
        columns.append(
            Column(name=recipe.title, weights=recipe.shares, tuned=tuned, guided=recipe.guided, noise=recipe.noise)
        )
    return columns


@torch.no_grad()
def judge(model: Model, names: Sequence[str], frame: Frame, request: Request) -> Scores:
    """The reward that tuning saw, the held-out one, diversity and open attributes of a frame's columns."""
    if not torch.isfinite(frame.images).all():
        raise FloatingPointError(f"the images of step {frame.step} are not finite")
    columns, n = frame.images.shape[:2]
    flat = frame.images.flatten(0, 1)
    features, classes = model.measure(flat)
    prompts, facts = [request.prompt] * len(flat), model.facts
    rewards = {name: model.rewards[name](flat, prompts).float().cpu() for name in facts.judges(request.tuning)}
    return score(
        names,
        features.float().unflatten(0, (columns, n)),
        {name: values.unflatten(0, (columns, n)) for name, values in rewards.items()},
        {name: classes[name].unflatten(0, (columns, n)) for name in facts.open_attributes(request.prompt)},
        facts.values,
        proxy=facts.proxy(request.tuning),
    )
