"""What the engine runs jobs on: a model, and one that can be loaded on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline

from aig.method.budget import UNLIMITED, Budget
from aig.method.code import Reward
from aig.runs.facts import Facts


@dataclass(frozen=True, kw_only=True)
class Model:
    """A base pipeline, its tuned twins, and everything that judges its images, (B, 3, H, W) in [0, 1]."""

    facts: Facts
    pipe: DiffusionPipeline
    rewards: Mapping[str, Reward]  # by name, at least those that judge the tuned model that was prepared
    twin: Callable[[str, float, float], Callable]  # (tuned model, KL coefficient, LoRA scale) -> tuned denoiser
    moving: Callable[[str, float], Callable[[float], Callable]]  # (tuned model, KL) -> LoRA scale of a step -> denoiser
    measure: Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]  # -> features, class probabilities
    prepare: Callable[[str, Callable[[str], None]], None] = lambda tuning, tell: None  # before a run of a tuned model
    release: Callable[[], None] = lambda: None  # free all memory at once, when another model is wanted
    budget: Callable[[], Budget] = lambda: UNLIMITED  # for the memory that is left once all is loaded
    size: int | None = None  # pixels to sample at; None for those that the denoiser was trained at

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, D) for diversity."""
        return self.measure(images)[0]

    def attributes(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Attribute -> class probabilities (B, values)."""
        return self.measure(images)[1]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A model that can be loaded on demand. ``tell(note)`` is called with what is being done; it may raise, which ends that."""

    facts: Facts
    load: Callable[[Callable[[str], None]], Model]
    missing: Callable[[str], bool] = lambda tuning: False  # whether runs of a tuned model need files that are not here yet
    fetch: Callable[[str, Callable[[str], None]], None] = lambda tuning, tell: None  # downloads them; needs no model, no GPU
