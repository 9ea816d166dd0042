"""Images as vision towers read them, in torch and differentiable: resized, cropped or padded, normalised.

The originals resize with PIL, which rounds to 8 bits after each of its two passes, or with torchvision on tensors. Both
use the bicubic kernel with a = -1/2, widened when it shrinks; that is ``interpolate(mode="bicubic", antialias=True)``.
Left out: the rounding to 8 bits, which has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI CLIP
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Fit = Literal["floor", "round", "pad"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a square input of ``size`` pixels is made.

    ``fit``: "floor" and "round" scale the shorter side to ``edge`` and crop the centre, where half a pixel is cut down
    (transformers) or rounded to even (torchvision); "pad" scales the longer side to ``edge`` and pads in black (HPSv2).
    """

    size: int
    edge: int
    fit: Fit
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD


def prepare(images: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1] of any size -> (B, 3, size, size) in float32, normalised."""
    images = images.float()
    square = padded(images, recipe.edge) if recipe.fit == "pad" else cropped(images, recipe)
    mean, std = (square.new_tensor(values).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    return (square - mean) / std


def cropped(images: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The centre (B, 3, size, size) of images (B, 3, H, W) whose shorter side is first scaled to ``edge``."""
    short = min(images.shape[2:])
    sides = [recipe.edge if side == short else int(recipe.edge * side / short) for side in images.shape[2:]]
    for shape in ([images.shape[2], sides[1]], sides):  # PIL's passes; its 8 bits clip what each overshoots
        images = resized(images, shape).clamp(0, 1)
    half = (lambda cut: cut // 2) if recipe.fit == "floor" else (lambda cut: round(cut / 2))
    top, left = (half(side - recipe.size) for side in sides)
    return images[..., top : top + recipe.size, left : left + recipe.size]


def padded(images: torch.Tensor, edge: int) -> torch.Tensor:
    """Images (B, 3, H, W) scaled to fit into (B, 3, edge, edge), black around; not clamped, like the original."""
    scale = edge / max(images.shape[2:])
    height, width = (max(1, round(side * scale)) for side in images.shape[2:])
    images = resized(images, [height, width])
    above, before = (edge - height) // 2, (edge - width) // 2
    return F.pad(images, (before, edge - width - before, above, edge - height - above))


def resized(images: torch.Tensor, sides: list[int]) -> torch.Tensor:
    """Bicubic, antialiased; unchanged when the sides already fit."""
    if list(images.shape[2:]) == sides:
        return images
    return F.interpolate(images, sides, mode="bicubic", align_corners=False, antialias=True)
