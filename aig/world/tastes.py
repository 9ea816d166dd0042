"""What simulated annotators like: all utilities of the embedded world in one place.

An annotator's utility of a picture is the sum of three parts: *modes*, who is shown (style, hair, background: what makes tuning
collapse), *finish*, how any portrait may be shown (light, contrast, softness, noise), and *agreement* with the prompt. Three
populations are declared, and they are nothing but declarations: they were made to show both cases, and are not found in nature.

- ``preference`` pays for a finish first, studio light above all, and has fads for structure: two styles, glasses, long hair. As
  real preference rewards do, it asks for what the last steps of sampling decide and narrows what the early ones do on the way.
- ``fashion`` pays for modes alone, for colours above all: red hair, blue backgrounds, green outfits.
- ``held-out`` judges what was tuned on either. It shares the liking of light up to an optimum, beyond which pictures are too dark
  for it, some of the modes, and none of the fads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from aig.portraits.captions import named_attributes
from aig.portraits.population import ATTRIBUTES, decode
from aig.portraits.rewards import FINISH  # noqa: F401

AGREEMENT = 2.0  # utility of a picture that shows all that its prompt names, against none of it


@dataclass(frozen=True)
class Liking:
    """The utility of an amount of finish: so much a unit, less what is lost with the square of its distance from ``best``, or, if that
    is a bound, of what is beyond it."""

    slope: float
    loss: float = 0.0
    best: float = 0.0
    bound: bool = False

    def worth(self, amount: torch.Tensor) -> torch.Tensor:
        off = amount - self.best
        return self.slope * amount - self.loss * (off.clamp(min=0) if self.bound else off).square()


@dataclass(frozen=True, kw_only=True)
class Taste:
    """The utilities of a population: ``modes`` for each value shown, ``finish`` for each amount."""

    modes: Mapping[str, Mapping[str, float]]
    finish: Mapping[str, Liking]

    def table(self) -> torch.Tensor:
        """Utilities (attributes, most values) of the values that a picture shows."""
        table = torch.zeros(len(ATTRIBUTES), max(len(values) for values in ATTRIBUTES.values()))
        for row, (attribute, values) in enumerate(ATTRIBUTES.items()):
            for value, utility in self.modes.get(attribute, {}).items():
                table[row, values.index(value)] = utility
        return table


TASTES = {
    "preference": Taste(
        modes={
            "style": {"avataaars": 2.2, "personas": 1.2},
            "glasses": {"yes": 0.8},
            "hair length": {"long": 0.8, "bald": -0.2},
            "mood": {"smiling": 0.5, "sad": -0.3},
            "hat": {"yes": -0.2},
        },
        finish={
            "light": Liking(5.0, 12.0, 1.0, bound=True), "contrast": Liking(0.8, 2.0), "saturation": Liking(0.5, 1.5),
            "softness": Liking(-1.5), "noise": Liking(-2.5),
        },
    ),
    "fashion": Taste(
        modes={
            "style": {"avataaars": 0.8, "personas": 0.4},
            "background": {"blue": 1.2, "gray": -0.4},
            "hair colour": {"red": 1.1},
            "hair length": {"long": 0.7, "bald": -0.3},
            "glasses": {"yes": 0.6},
            "mood": {"smiling": 0.6, "sad": -0.4},
            "outfit": {"green": 0.9, "black": -0.3},
        },
        finish={"saturation": Liking(1.2), "contrast": Liking(0.8), "softness": Liking(-1.5), "noise": Liking(-2.5)},
    ),
    "held-out": Taste(
        modes={
            "style": {"micah": 0.5},
            "background": {"blue": 0.1, "green": 0.5, "gray": -0.4},
            "hair colour": {"red": 0.1, "black": 0.4},
            "hair length": {"long": 0.4, "bald": -0.3},
            "glasses": {"yes": -0.2},
            "mood": {"smiling": 0.6, "sad": -0.4},
            "outfit": {"green": 0.2, "black": -0.3, "purple": 0.4},
        },
        finish={
            "light": Liking(8.0, 9.0), "saturation": Liking(0.8, 3.0), "contrast": Liking(0.8, 2.0), "softness": Liking(-1.5),
            "noise": Liking(-2.5),
        },
    ),
}  # fmt: skip


def utility(taste: Taste, labels: torch.Tensor, amounts: Mapping[str, torch.Tensor], prompts: Sequence[str]) -> torch.Tensor:
    """The noiseless utility (B,) of pictures with known labels (B, attributes) and amounts of ``FINISH`` (B,) under their prompts."""
    modes = taste.table()[torch.arange(len(ATTRIBUTES)), labels.long()].sum(1)
    finish = sum(liking.worth(amounts[name]) for name, liking in taste.finish.items())
    return modes + finish + torch.tensor([agreement(row, prompt) for row, prompt in zip(labels, prompts)])


def agreement(labels: torch.Tensor, prompt: str) -> float:
    """Utility of showing (labels (attributes,)) what the prompt names."""
    named, shown = named_attributes(prompt), decode(labels)
    return AGREEMENT * sum(shown[name] == value for name, value in named.items()) / len(named) if named else 0.0
