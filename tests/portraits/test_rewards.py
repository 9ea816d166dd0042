"""Rewards against the libraries and formulas that they follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aig.portraits.light import light_of
from aig.portraits.rewards import CEILING, FINISH, SHOWN, Shown, Vivid, build
from aig.published import scorers
from aig.published.rewards import load
from tests import checkpoints


@pytest.fixture
def images():
    """Noise of 12 strengths on ramps of as many colours, (12, 3, 32, 32) in [0, 1]."""
    rng = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 32).expand(12, 3, 32, 32) * torch.rand(12, 3, 1, 1, generator=rng)
    return (ramp + torch.linspace(0, 0.3, 12).view(-1, 1, 1, 1) * torch.randn(12, 3, 32, 32, generator=rng)).clamp(0, 1)


def test_vivid_is_the_colourfulness_of_hasler_and_suesstrunk(images):
    for image, value in zip(images.numpy().astype(float), Vivid().raw(images, [""] * 12)):
        r, g, b = image
        rg, yb = r - g, (r + g) / 2 - b
        expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
        assert value == pytest.approx(expected, abs=1e-3)
    grey = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    Vivid()(grey, [""]).sum().backward()
    assert torch.isfinite(grey.grad).all()


def test_ascent_on_pixels_raises_a_reward_up_to_its_ceiling(images):
    reward, x = Vivid(), images[:2].clone().requires_grad_(True)
    reward.shift.copy_(reward.raw(images[:2], ["", ""]).mean())
    before = reward(x, ["", ""])
    before.sum().backward()
    with torch.no_grad():
        after = reward(x + 0.01 * x.grad / x.grad.norm(), ["", ""])
    assert (after > before).all() and after.max() < CEILING


def test_every_reward_loads_by_name(images, tmp_path):
    assert load("preference")(images, [""] * 12).shape == (12,)
    assert load("clip", checkpoints.build("clip", tmp_path))(images, ["a"] * 12).shape == (12,)
    with pytest.raises(ValueError, match="'beauty'; choose one of: fashion, held-out, preference, vivid, " + ", ".join(scorers.SCORERS)):
        load("beauty")


def test_a_concept_reward_sees_who_is_shown_how_they_are_finished_and_nothing_else():
    torch.manual_seed(0)
    shown = Shown()
    sure = torch.zeros(1, sum(SHOWN))
    sure[0, 0] = 10.0  # of the first style, as a trained tower is
    sure[0, -len(FINISH) :] = torch.tensor([-0.5 if name in ("softness", "noise") else -0.2 for name in FINISH])
    *probabilities, amounts = shown(sure).split(SHOWN, dim=1)
    assert all(p.sum().item() == pytest.approx(1) for p in probabilities) and 0.5 < probabilities[0][0, 0] < 0.99
    assert amounts[0].tolist() == pytest.approx([0.0 if name in ("softness", "noise") else -0.2 for name in FINISH])
    reward = build("preference").eval()
    x = torch.rand(2, 3, 64, 64)
    seen = reward.seen(x)
    assert torch.equal(reward.judged(seen, ["", "a robot"]), reward.raw(x, ["", "a robot"]))
    assert torch.equal(seen[:, -1], light_of(x))
