"""Annealed Importance Guidance for text-to-image diffusion models (Jena et al., WACV 2025, arXiv 2409.06493).

    from aig import annealed, shares

    with annealed(pipe, shares("power_2", 20)):
        images = pipe("a portrait", num_inference_steps=20).images

``shares`` are what the tuned model contributes to each step; ``annealed`` makes a stock diffusers pipeline, with a LoRA or beside
another denoiser, sample by them. Nothing heavy is imported before one of the two is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aig.method.guidance import annealed
    from aig.method.schedules import shares

__all__ = ["annealed", "shares"]


def __getattr__(name: str) -> object:
    if name == "annealed":
        from aig.method.guidance import annealed

        return annealed
    if name == "shares":
        from aig.method.schedules import shares

        return shares
    raise AttributeError(f"module 'aig' has no attribute {name!r}")
