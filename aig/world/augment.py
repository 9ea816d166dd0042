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


def noisy(x: torch.Tensor, sigma: torch.Tensor, size: int, rng: torch.Generator) -> torch.Tensor:
    """Add normal noise of standard deviation ``sigma`` (B,), drawn on a grid of ``size`` squared and enlarged."""
    noise = torch.randn(len(x), 3, size, size, generator=rng)
    if size != x.shape[-1]:
        noise = F.interpolate(noise, size=x.shape[-2:], mode="bilinear")
    return (x + sigma.view(-1, 1, 1, 1).to(x) * noise.to(x)).clamp(0, 1)


def damage(x: torch.Tensor, rng: torch.Generator, *, noise: bool = True) -> torch.Tensor:
    """Random shift, and softness or noise, if wanted; the same kind for the whole batch, other amounts of noise for each image."""
    kind = int(torch.randint(4, (1,), generator=rng))
    dy, dx = (int(v) for v in torch.randint(-3, 4, (2,), generator=rng))
    x = shift(x, dy, dx)
    if kind == 1:
        x = soften(x, int(torch.randint(24, 60, (1,), generator=rng)))
    if noise and kind >= 2:
        x = noisy(x, 0.12 * torch.rand(len(x), generator=rng), x.shape[-1] if kind == 2 else 32, rng)
    return x
