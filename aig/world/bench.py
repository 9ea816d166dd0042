"""What every part of the evaluation measures with: the shipped asset, the drawings, and one way to draw samples.

All sampling goes through the stock pipeline call, but for AIG itself.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from aig.assets import ASSETS
from aig.portraits import serving
from aig.portraits.light import MOST_LIGHT, lit
from aig.runs import models
from aig.world import data
from aig.world.presets import World

STEPS, GUIDANCE = 12, 3.0
Measuring = Generator[dict[str, float], None, dict]  # yields progress, returns figures


@dataclass(kw_only=True)
class Bench:
    """What every part measures with."""

    model: models.Model
    folder: Path  # of the asset
    images: np.ndarray  # all drawings, the held-out ones last
    labels: np.ndarray
    preset: World

    @property
    def held(self) -> slice:
        return slice(self.preset.drawings, None)

    @cached_property
    def drawn(self) -> Tensor:
        """Features (N, D) of drawings, to compare samples with."""
        return features_of(self.model, self.images[:5_000])

    @cached_property
    def finished(self) -> Tensor:
        """The same of drawings under a random light, as a tuned model may have learned to show them."""
        rng = torch.Generator().manual_seed(96)
        at_random = lambda batch: lit(batch, MOST_LIGHT * torch.rand(len(batch), generator=rng))  # noqa: E731
        return torch.cat([self.model.features(at_random(batch)) for batch in data.batches(self.images[:5_000])])

    @cached_property
    def manifest(self) -> dict[str, str]:
        """File -> SHA-256."""
        return json.loads((self.folder / "manifest.json").read_text())


def load(preset: World, *, assets: Path = ASSETS) -> Bench:
    """The shipped asset and the drawings of a preset."""
    images, labels = data.load(preset)
    model = serving.load("portraits", assets=assets)
    return Bench(model=model, folder=assets / "portraits", images=images, labels=labels, preset=preset)


def features_of(model: models.Model, images: np.ndarray) -> Tensor:
    """Features (N, D) of drawings (N, H, W, 3) uint8."""
    return torch.cat([model.features(batch) for batch in data.batches(images)])


def draw(pipe: DiffusionPipeline, texts: list[str], seeds, *, steps: int = STEPS, guidance: float = GUIDANCE) -> Tensor:
    """One image a prompt, (B, 3, H, W) in [0, 1], by the stock pipeline call."""
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(texts, num_inference_steps=steps, guidance_scale=guidance, generator=noise, output_type="pt").images
