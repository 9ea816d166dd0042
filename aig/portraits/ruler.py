"""The ruler: image features for diversity and an attribute classifier, one small convolutional net that no reward shares."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """x + two 3x3 convolutions of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](self.first(x)).relu()
        return (x + self.norms[1](self.second(y))).relu()


class Ruler(nn.Module):
    """Features (B, D) and, for each attribute, logits (B, values) of images (B, 3, H, W) in [0, 1]."""

    def __init__(self, attributes: Mapping[str, tuple[str, ...]], widths: tuple[int, ...] = (32, 64, 128, 192)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip((3, *widths), widths, strict=False)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [Residual(after)] if i else []
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(4 * widths[-1], len(v)) for name, v in attributes.items()})
        self.register_buffer("mean", torch.zeros(widths[-1]))  # of the features over drawings: cosines are taken around it

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        grid = self.body(images.mul(2).sub(1).contiguous(memory_format=torch.channels_last))
        quarters = F.adaptive_avg_pool2d(grid, 2).flatten(1)  # where things are matters to the heads: a hat is on top
        logits = {name: head(quarters) for name, head in self.heads.items()}
        return grid.mean(dim=(2, 3)) - self.mean, logits
