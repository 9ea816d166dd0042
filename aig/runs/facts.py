"""What is known of a model that is not loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

LABELS = {  # what rewards are called
    "preference": "Reward",
    "fashion": "Fashion reward",
    "vivid": "Vividness",
    "held-out": "Held-out reward",
    "pickscore": "PickScore",
    "hpsv2": "HPSv2.1",
    "imagereward": "ImageReward",
    "aesthetics": "LAION aesthetics",
    "clip": "CLIP score",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What requests are checked against, and what the page is laid out by."""

    name: str
    title: str
    tunings: Mapping[str, tuple[float, ...]]  # tuned model -> its KL coefficients, ascending
    rewards: Collection[str]
    held_out: str  # the reward that no tuning saw
    size: int  # of an image, in pixels
    max_words: int  # of a prompt
    proxies: Mapping[str, str] = field(default_factory=dict)  # tuned model -> the reward shown for it, unless that is its own name
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # attribute -> its values, where the truth is known
    defaults: Mapping[str, object] = field(default_factory=dict)  # of a Request, where this model wants others
    max_rows: int = 8_000  # model evaluations of a run: about a minute of the embedded world on two cores
    distilled: bool = False  # for guidance, which then needs no second prompt branch
    about: str = ""  # licence and price, for the page
    precision: str = ""  # in which the denoiser multiplies, where it was chosen for this machine
    notes: Mapping[str, str] = field(default_factory=dict)  # tuned model -> what the page says of it

    def proxy(self, tuning: str) -> str:
        """The reward that a tuned model was tuned on, or the nearest to it that there is."""
        return self.proxies.get(tuning, tuning)

    def judges(self, tuning: str) -> tuple[str, ...]:
        """The rewards that are shown of a run: the one that tuning saw, then the held-out one."""
        return tuple(name for name in dict.fromkeys((self.proxy(tuning), self.held_out)) if name in self.rewards)

    def open_attributes(self, prompt: str) -> tuple[str, ...]:
        """The attributes that the prompt does not name."""
        if not self.values:
            return ()
        from aig.portraits.captions import named_attributes

        named = named_attributes(prompt)
        return tuple(name for name in self.values if name not in named)

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """Words of the prompt that the model was not trained on, where they are known."""
        if not self.values:
            return ()
        from aig.portraits.captions import unknown_words

        return unknown_words(prompt)
