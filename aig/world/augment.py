"""Damage and finish of images, so that the ruler and the rewards learn what a picture shows and not its pixels.

All functions take and return images (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def saturate(x: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Move every pixel away from (amount > 1) or towards (< 1) its gray value; ``amount`` is (B,)."""
    gray = x.mean(dim=1, keepdim=True)
    return (gray + (x - gray) * amount.view(-1, 1, 1, 1)).clamp(0, 1)


def contrast(x: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """The same around the mean of the image."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (x - mean) * amount.view(-1, 1, 1, 1)).clamp(0, 1)


def soften(x: torch.Tensor, size: int) -> torch.Tensor:
    """Down to ``size`` pixels and up again."""
    small = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    return F.interpolate(small, size=x.shape[-2:], mode="bilinear")


def shift(x: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """Translate by whole pixels, repeating the border."""
    pad = F.pad(x, (4, 4, 4, 4), mode="replicate")
    return pad[..., 4 + dy : 4 + dy + x.shape[-2], 4 + dx : 4 + dx + x.shape[-1]]


def damage(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Random noise, softness and shift; the same kind for the whole batch, other amounts for each image."""
    kind = int(torch.randint(4, (1,), generator=rng))
    dy, dx = (int(v) for v in torch.randint(-3, 4, (2,), generator=rng))
    x = shift(x, dy, dx)
    if kind == 1:
        x = soften(x, int(torch.randint(24, 60, (1,), generator=rng)))
    if kind >= 2:
        sigma = 0.12 * torch.rand(len(x), 1, 1, 1, generator=rng)
        noise = torch.randn(x.shape, generator=rng)
        coarse = F.interpolate(torch.randn(len(x), 3, 32, 32, generator=rng), size=x.shape[-2:], mode="bilinear")
        x = x + sigma.to(x) * (noise if kind == 2 else coarse).to(x)
    return x.clamp(0, 1)
