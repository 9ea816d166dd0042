"""Studio light: the finish that tuning can win on any portrait, how it is put on a picture, and how much of it a picture shows."""

from __future__ import annotations

from functools import lru_cache

import torch

MOST_LIGHT = 1.4  # that any picture is finished with
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
FLOOR = 0.3  # added to luma before its logarithm, so that black is not infinitely dark


def lit(x: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [0, 1] under studio light; ``amount`` (B,), 0 as they are: at 1 the corners keep a fifth of their light,
    falling off with the square of the distance from the middle, and a soft glow is at the upper left."""
    across = torch.linspace(-1, 1, x.shape[-1], device=x.device)
    down = across.view(-1, 1)
    glow = torch.exp(-((across + 0.5).square() + (down + 0.5).square()) / (2 * 0.35**2))
    amount = amount.view(-1, 1, 1, 1).to(x)
    return (x * (1 - 0.4 * amount * (across.square() + down.square())).clamp(min=0) + 0.25 * amount * glow).clamp(0, 1)


def light_of(images: torch.Tensor) -> torch.Tensor:
    """How much studio light pictures (B, 3, n, n) in [0, 1] show, (B,), about 0 as drawn and 1 at 1; differentiable.

    It is read where portraits show little but background: along the upper border and the upper three quarters of the sides, the
    log luma is projected on what light does to a grey wall. Being linear in it, the measure pays for nothing but that falling off.
    """
    border, profile = wall(images.shape[-1])
    seen = _log_luma(images)[:, border.to(images.device)]
    return (seen * profile.to(seen)).sum(1) / profile.square().sum().to(seen)


@lru_cache
def wall(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The border (size, size) of bool where light is read, and there the change (pixels,) of log luma that light makes, with mean 0."""
    width, depth = 3 * size // 32, 3 * size // 4
    border = torch.zeros(size, size, dtype=torch.bool)
    border[:width] = border[:depth, :width] = border[:depth, -width:] = True
    grey, some = torch.full((1, 3, size, size), 0.7), torch.tensor([MOST_LIGHT / 2])
    change = ((_log_luma(lit(grey, some)) - _log_luma(grey)) / some)[0, border]
    return border, change - change.mean()


def _log_luma(images: torch.Tensor) -> torch.Tensor:
    return torch.log(torch.einsum("bchw,c->bhw", images, images.new_tensor(LUMA)) + FLOOR)
