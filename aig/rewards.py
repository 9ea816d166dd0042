"""Rewards are plain callables ``(images (B, 3, H, W) in [0, 1], prompts) -> (B,)``, differentiable in the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from aig.features import Residual

Reward = Callable[[torch.Tensor, Sequence[str]], torch.Tensor]

CEILING = 4.0  # rewards saturate: beyond what any drawing reaches there is little left to win by an attack


class PreferenceReward(nn.Module):
    """A Bradley-Terry model of simulated annotators, on pixels and the words of the prompt.

    ``widths`` and ``kernel`` shape the image tower; the proxy and the held-out judge use different ones. The scalar is
    ``a(image) + <b(image), words(prompt)>``, saturated at +-``CEILING``; over drawings it has mean 0 and unit variance.
    """

    def __init__(self, vocabulary: Sequence[str], widths: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        self.index = {word: i for i, word in enumerate(vocabulary)}
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.SiLU(), Residual(after)]
        self.tower = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(4 * widths[-1], 128), nn.SiLU(), nn.Linear(128, 1 + 64))
        self.words = nn.Embedding(len(vocabulary), 64)
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def bag(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts as counts of known words, (B, vocabulary)."""
        from aig.world.captions import words_of

        counts = torch.zeros(len(prompts), len(self.index), device=self.shift.device)
        for row, prompt in enumerate(prompts):
            for word in words_of(prompt):
                if word in self.index:
                    counts[row, self.index[word]] += 1
        return counts

    def raw(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """The unsaturated scalar, which Bradley-Terry training fits."""
        x = images.mul(2).sub(1).contiguous(memory_format=torch.channels_last)
        x = nn.functional.adaptive_avg_pool2d(self.tower(x), 2).flatten(1)
        score, content = self.head(x).split([1, 64], dim=1)
        return score.squeeze(1) + (content * (self.bag(prompts) @ self.words.weight)).sum(1) / 8

    def forward(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return CEILING * torch.tanh((self.raw(images, prompts) - self.shift) / self.scale / CEILING)
