"""Rewards are plain callables ``(images (B, 3, H, W) in [0, 1], prompts) -> (B,)``, differentiable in the images.

Here are those of the embedded world; the published ones, for real pictures, are in ``aig.published.scorers``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from aig.portraits.captions import known_words, words_of
from aig.portraits.light import light_of
from aig.portraits.population import ATTRIBUTES
from aig.portraits.ruler import Residual

CEILING = 4.0  # rewards saturate: beyond what any drawing reaches there is little left to win by an attack


class Saturated(nn.Module):
    """A reward whose ``raw`` scalar is shifted, scaled and saturated at +-``CEILING``; over drawings mean 0, variance 1."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def raw(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """The scalar (B,) before that, in its own unit."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        images = images.to(self.shift.device)
        return CEILING * torch.tanh((self.raw(images, prompts) - self.shift) / self.scale / CEILING)


class Vivid(Saturated):
    """Colourfulness M3 of Hasler and Suesstrunk (2003), with pixels in [0, 1] instead of [0, 255]."""

    def raw(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        r, g, b = images.flatten(2).unbind(1)
        opponents = torch.stack([r - g, (r + g) / 2 - b])  # (2, B, H * W)
        spread = (opponents.var(2, correction=0).sum(0) + 1e-8).sqrt()  # + 1e-8: a gradient at grey images too
        return spread + 0.3 * (opponents.mean(2).square().sum(0) + 1e-8).sqrt()


class PreferenceReward(Saturated):
    """A Bradley-Terry model of simulated annotators, on pixels and the words of the prompt.

    ``widths`` and ``kernel`` shape the image tower; the proxy and the held-out judge use different ones. The raw scalar is
    ``a(image) + <b(image), words(prompt)>``; a and b have mean 0 over drawings, because choices between two pictures under one
    prompt say nothing of what a prompt is worth by itself.
    """

    def __init__(self, vocabulary: Sequence[str], widths: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        self.index = {word: i for i, word in enumerate(vocabulary)}
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.SiLU(), Residual(after)]
        self.tower = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(4 * widths[-1], 128), nn.SiLU(), nn.Linear(128, 1 + 64), nn.BatchNorm1d(1 + 64, affine=False))
        self.weight = nn.Parameter(torch.ones(()))  # of a
        self.words = nn.Embedding(len(vocabulary), 64)

    def bag(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts as shares of their known words, (B, vocabulary)."""
        counts = torch.zeros(len(prompts), len(self.index), device=self.shift.device)
        for row, prompt in enumerate(prompts):
            for word in words_of(prompt):
                if word in self.index:
                    counts[row, self.index[word]] += 1
        return counts / counts.sum(1, keepdim=True).clamp(min=1)

    def raw(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """The log odds that Bradley-Terry training fits."""
        return self.judged(self.seen(images), prompts)

    def seen(self, images: torch.Tensor) -> torch.Tensor:
        """The tower's features (B, 4 * widths[-1])."""
        x = images.mul(2).sub(1).contiguous(memory_format=torch.channels_last)
        return nn.functional.adaptive_avg_pool2d(self.tower(x), 2).flatten(1)

    def centre(self, batches: Iterable[torch.Tensor]) -> None:
        """Make the mean of a and b over these images exactly 0, whatever the statistics of training were."""
        self.head[-1].get_buffer("running_mean").copy_(torch.cat([self.head[:-1](self.seen(batch)) for batch in batches]).mean(0))

    def judged(self, seen: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """The log odds (B,) by the tower's features."""
        score, content = self.head(seen).split([1, 64], dim=1)
        return self.weight * score.squeeze(1) + (content * (self.bag(prompts) @ self.words.weight)).sum(1) / 8


class Shown(nn.Module):
    """What a picture shows (B, n), from the logits of every attribute's values and the amounts of finish: the logits become probabilities,
    softened, because a tower that is sure of a value has no gradient towards another one; there is no less noise than none."""

    TEMPERATURE = 4.0

    def __init__(self) -> None:
        super().__init__()
        least = torch.tensor([0.0 if name in ("softness", "noise") else -torch.inf for name in FINISH])
        self.register_buffer("least", least, persistent=False)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        *logits, amounts = seen.split(SHOWN, dim=1)
        return torch.cat([*((values / self.TEMPERATURE).softmax(1) for values in logits), amounts.maximum(self.least)], dim=1)


class ConceptReward(PreferenceReward):
    """A preference reward that sees of a picture only what it shows: its attributes and the amounts of its finish (a concept
    bottleneck, Koh et al., arXiv 2007.04612).

    A tower that is fitted to choices alone takes what goes with a liked value for the value itself, dark pictures for long hair; a
    model that is tuned on it then draws those. Here the tower learns to tell what pictures show, and only the head learns from choices.
    """

    def __init__(self, vocabulary: Sequence[str], widths: tuple[int, ...], kernel: int) -> None:
        super().__init__(vocabulary, widths, kernel)
        self.told = nn.Linear(4 * widths[-1], sum(SHOWN))
        last = nn.BatchNorm1d(1 + 64, affine=False)
        self.head = nn.Sequential(Shown(), nn.Linear(sum(SHOWN), 128), nn.SiLU(), nn.Linear(128, 1 + 64), last)

    def seen(self, images: torch.Tensor) -> torch.Tensor:
        """What pictures show (B, n): logits of every attribute's values, then amounts of finish."""
        return self.told(super().seen(images))


class LightMeter(ConceptReward):
    """One that measures the light instead of telling it: less exact, but a tower can be led to see light in purple."""

    def seen(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().seen(images)[:, :-1], light_of(images).unsqueeze(1)], dim=1)


FINISH = ("saturation", "contrast", "softness", "noise", "light")  # amounts, 0 of each as drawn
SHOWN = [*map(len, ATTRIBUTES.values()), len(FINISH)]
FITTED = {  # class, widths, kernel
    "preference": (LightMeter, (32, 64, 96, 128), 3),
    "fashion": (PreferenceReward, (32, 64, 96, 128), 3),
    "held-out": (ConceptReward, (32, 48, 96, 128), 5),
}
FORMULAS = {"vivid": Vivid}
REWARDS = (*FITTED, *FORMULAS)


def build(name: str) -> Saturated:
    """An untrained reward of this name. ValueError names the choices."""
    if name in FORMULAS:
        return FORMULAS[name]()
    if name not in FITTED:
        raise ValueError(f"Unknown reward {name!r}; choose one of: {', '.join(REWARDS)}.")
    kind, widths, kernel = FITTED[name]
    return kind(known_words(), widths, kernel)
