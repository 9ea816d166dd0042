"""One training loop for every stage: a generator that resumes after a kill, averages weights and keeps its curve."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Cycles = tuple[tuple[int, float], ...]  # the step at which each learning rate cycle ends, and its peak
Terms = dict[str, torch.Tensor]  # "loss" and what else the curve shows
WORTH_COMPILING = 1_000  # steps


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compiled(model: nn.Module, steps: int) -> Callable:
    """The model's forward, compiled where a compiler is found and the steps are worth its minutes; same weights.

    On two cores a training step of the denoiser takes 0.7 times as long.
    """
    possible = torch.cuda.is_available() or shutil.which(os.environ.get("CXX", "g++"))
    return torch.compile(model) if possible and steps >= WORTH_COMPILING else model


def warm_cosine(step: int, cycles: Cycles) -> float:
    """The learning rate: in each cycle a linear warm-up over up to 100 steps, then half a cosine from its peak to zero.

    A finished model trains on by appending a cycle (warm restarts, as in SGDR, arXiv 1608.03983).
    """
    begin = 0
    for end, peak in cycles:  # noqa: B007  the last one is used
        if step < end:
            break
        begin = end
    warmup = min(100, max(1, (end - begin) // 10))
    return peak * min(1.0, (step - begin + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * (step - begin) / (end - begin)))


def warm_hold(step: int, cycles: Cycles) -> float:
    """The learning rate: a linear warm-up over 10 steps to the peak of the first cycle, and then that peak."""
    return cycles[0][1] * min(1.0, (step + 1) / 10)


def fit(
    model: nn.Module,
    loss: Callable[[int, torch.Generator], Terms | Iterator[Terms]],
    *,
    cycles: Cycles,
    rate: Callable[[int, Cycles], float] = warm_cosine,
    folder: Path,
    seed: int = 0,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.99),
    ema: float = 0.0,
    clip: float = 1.0,
    save_every: float = 60.0,
) -> Iterator[dict[str, float]]:
    """Minimise ``loss(step, generator)["loss"]`` with AdamW, yielding the loss terms of every step.

    A loss that is too large for the memory comes in parts, whose terms add up; each is differentiated before the next is made.
    The generator handed to ``loss`` depends on ``(seed, step)`` alone, so a run that was killed and resumed sees the batches
    that an unbroken run sees. Every ``save_every`` seconds the state goes to ``folder/checkpoint.pt`` (atomically) and the
    curve to ``folder/curve.jsonl``. With ``ema`` > 0 the model holds the averaged weights at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    steps = cycles[-1][0]
    checkpoint, curve = folder / "checkpoint.pt", folder / "curve.jsonl"
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, weight_decay=weight_decay, betas=betas, fused=True)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else None
    start, seconds = 0, 0.0
    if checkpoint.exists():
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location=device())
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if average:
            average.load_state_dict(state["average"])
        start, seconds = state["step"], state["seconds"]
        kept = [line for line in curve.read_text().splitlines() if json.loads(line)["step"] <= start]
        curve.write_text("".join(line + "\n" for line in kept))

    began, saved = time.monotonic(), time.monotonic()
    model.train()
    with curve.open("a") as log:
        for step in range(start, steps):
            for group in optimiser.param_groups:
                group["lr"] = rate(step, cycles)
            optimiser.zero_grad(set_to_none=True)
            found = loss(step, torch.Generator().manual_seed(seed * 1_000_003 + step))
            terms: dict[str, float] = {}
            for part in found if isinstance(found, Iterator) else (found,):
                part["loss"].backward()
                terms = {name: terms.get(name, 0.0) + float(value.detach()) for name, value in part.items()}
            if not math.isfinite(terms["loss"]):
                raise FloatingPointError(f"the loss is {terms['loss']} at step {step} of {folder.name}")
            nn.utils.clip_grad_norm_(trained, clip)
            optimiser.step()
            if average:
                average.update_parameters(model)
            row = {"step": step + 1, **terms}
            log.write(json.dumps(row) + "\n")
            if time.monotonic() - saved > save_every or step + 1 == steps:
                saved = time.monotonic()
                log.flush()
                state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
                state |= {"seconds": seconds + saved - began}
                state |= {"average": average.state_dict()} if average else {}
                torch.save(state, checkpoint.with_suffix(".tmp"))
                os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
            yield row | {"steps": steps}
    if average:
        model.load_state_dict(average.module.state_dict())
    model.eval()


def seconds_spent(folder: Path) -> float:
    """Training time recorded in a stage's checkpoint."""
    return float(torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")["seconds"])
