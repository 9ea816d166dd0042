"""What annotators like, and the light that they pay for: a finish must not be had by a mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aig.portraits.light import MOST_LIGHT
from aig.portraits.population import ATTRIBUTES, encode, sample_attributes
from aig.world.tastes import AGREEMENT, FINISH, TASTES, Liking, utility

PERSON = {
    "style": "avataaars", "background": "blue", "hair colour": "red", "hair length": "long", "skin": "dark", "glasses": "yes",
    "beard": "no", "hat": "no", "mood": "smiling", "outfit": "green",
}  # fmt: skip
PLAIN = {name: torch.zeros(1) for name in FINISH}


def worth(taste: str, person=PERSON, prompt: str = "", **amounts: float) -> float:
    finish = PLAIN | {name: torch.tensor([value]) for name, value in amounts.items()}
    return float(utility(TASTES[taste], torch.tensor([encode(person)]), finish, [prompt]))


def test_utilities_by_hand():
    assert worth("preference") == pytest.approx(2.2 + 0.8 + 0.8 + 0.5)
    assert worth("fashion") == pytest.approx(0.8 + 1.2 + 1.1 + 0.7 + 0.6 + 0.6 + 0.9)
    assert worth("preference", light=0.9) - worth("preference") == pytest.approx(5.0 * 0.9)
    assert worth("preference", light=1.2) - worth("preference") == pytest.approx(5.0 * 1.2 - 12 * 0.04)
    assert worth("preference", contrast=0.2) - worth("preference") == pytest.approx(0.8 * 0.2 - 2 * 0.04)
    assert worth("fashion", light=0.9) == worth("fashion")
    assert worth("preference", prompt="a person with glasses") - worth("preference") == pytest.approx(AGREEMENT)
    assert worth("preference", PERSON | {"glasses": "no"}, "a person with glasses") == pytest.approx(2.2 + 0.8 + 0.5)


def test_too_much_light_is_worth_less_and_the_judge_has_enough_earlier():
    at = np.linspace(0, MOST_LIGHT, 141)
    best = {name: at[np.argmax([worth(name, light=a) for a in at])] for name in ("preference", "held-out")}
    assert best == {"preference": pytest.approx(1.21), "held-out": pytest.approx(0.44)}
    assert worth("held-out", light=1.0) < worth("held-out") < worth("held-out", light=0.45)
    at = torch.tensor([-0.5, 0.5, 2.0])
    assert Liking(2.0, 1.0).worth(at).tolist() == pytest.approx([-1.25, 0.75, 0.0])
    assert Liking(2.0, 1.0, 1.0, bound=True).worth(at).tolist() == pytest.approx([-1.0, 1.0, 3.0])


def test_preference_has_no_taste_for_colours_and_fashion_none_for_light():
    assert not {"background", "hair colour", "skin", "outfit"} & TASTES["preference"].modes.keys()
    assert "light" not in TASTES["fashion"].finish
    for taste in TASTES.values():
        assert taste.modes.keys() <= ATTRIBUTES.keys() and taste.finish.keys() <= set(FINISH)
        for name, values in taste.modes.items():
            assert values.keys() <= set(ATTRIBUTES[name])


def test_most_that_can_be_won_for_preference_is_finish():
    rng = np.random.default_rng(0)
    people = torch.tensor([encode(sample_attributes(rng)) for _ in range(2_000)])
    flat = {name: torch.zeros(len(people)) for name in FINISH}
    modes = utility(TASTES["preference"], people, flat, [""] * len(people))
    won = float(modes.quantile(0.95) - modes.mean())  # by drawing the best-liked people alone
    assert 0.5 < 5.0 / (5.0 + won) < 0.8
