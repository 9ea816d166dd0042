"""Comparisons at an equal reward, switch curves and hypervolumes, on rows whose answers are worked out by hand."""

from __future__ import annotations

import pytest
import torch

from aig.measures.intervals import Estimate
from aig.world import methods, tradeoffs
from aig.world.methods import AIG
from aig.world.tradeoffs import COMPARED, STEPS

MEANS = {  # (reward, entropy)
    "base": (0.0, 1.0),
    "tuned": (4.0, 0.2),
    "KL 1": (1.0, 0.9),
    "LoRA scale 0.5": (2.0, 0.4),
    "AIG power_2": (3.0, 0.7),
    "AIG power_1": (3.8, 0.5),
}
FAMILIES = {
    AIG[1]: ["base", "AIG power_2", "AIG power_1", "tuned"],
    "KL": ["base", "KL 1", "tuned"],
    "LoRA scale": ["base", "LoRA scale 0.5", "tuned"],
}


def exact(value: float) -> Estimate:
    return Estimate(value, torch.full((8,), value, dtype=torch.float64))


def found(means=MEANS):
    return {label: {"r": exact(r), **{name: exact(e) for name in COMPARED}} for label, (r, e) in means.items()}


def test_aig_is_compared_with_the_others_at_shares_of_the_gain():
    rows = tradeoffs.at_equal_rewards(found(), FAMILIES, "r")
    at = {(row["other"], row["share"]): row["value"] for row in rows if row["score"] == "entropy"}
    assert set(at) == {(other, share) for other in ("KL", "LoRA scale") for share in tradeoffs.SHARES}
    assert at["LoRA scale", 0.5] == pytest.approx((1 - 0.3 * 2 / 3) - 0.4)
    assert at["LoRA scale", 0.8] == pytest.approx((0.7 - 0.2 * 0.2 / 0.8) - (0.4 - 0.2 * 1.2 / 2))
    assert at["KL", 0.9] == pytest.approx((0.7 - 0.2 * 0.6 / 0.8) - (0.9 - 0.7 * 2.6 / 3))
    assert {row["p"] for row in rows} <= {0.0, 1.0} and len(rows) == 2 * 5 * len(COMPARED)


def test_nothing_is_said_beyond_a_familys_own_strengths():
    weak = MEANS | {"AIG power_1": (2.5, 0.8), "AIG power_2": (1.0, 1.0)}
    assert {row["share"] for row in tradeoffs.at_equal_rewards(found(weak), FAMILIES, "r")} == {0.5, 0.6}


def test_a_family_that_reaches_the_corner_covers_the_square():
    corner = MEANS | {"AIG power_2": (4.0, 1.0)}
    areas = {(row["score"], row["family"]): row["hypervolume"] for row in tradeoffs.hypervolumes(found(corner), FAMILIES, "r")}
    assert areas["entropy", AIG[1]] == pytest.approx(1)
    assert areas["entropy", "LoRA scale"] == pytest.approx(0.5 * (0.4 - 0.2) / 0.8)


@pytest.mark.parametrize(("modes_by", "reward_from", "gap"), [(3, 9, 6 / STEPS), (6, 6, 0.0), (9, 3, -6 / STEPS)])
def test_the_gap_is_the_time_between_the_steps_at_which_modes_and_reward_are_decided(modes_by, reward_from, gap):
    """The base's first k steps bring all diversity back from ``modes_by`` on and take all reward away from ``reward_from`` on."""
    means = {"base": (0.0, 1.0), "tuned": (4.0, 0.2)}
    for k in range(1, STEPS):
        means[f"base for {k}, then tuned"] = (4.0 * (k < reward_from), 1.0 if k >= modes_by else 0.2)
    curves = tradeoffs.decided(found(means), "r")
    assert curves["gap"]["entropy"] == pytest.approx(gap)
    assert [row["r"]["value"] for row in curves["curves"]["base first"]][::STEPS] == [4.0, 0.0]


def test_every_method_is_measured_once_and_every_family_has_strengths():
    from types import SimpleNamespace

    from aig.world import presets

    bench = SimpleNamespace(preset=presets.CPU)
    for tuning in ("preference", "mixture-3"):
        plan = methods.compared(bench, tuning)
        labels = [method.label for method in plan]
        assert len(labels) == len(set(labels)) and labels[:2] == ["base", "tuned"]
        families = tradeoffs.members(plan)
        assert ("KL" in families) == (tuning == "preference") and all(len(members) >= 5 for members in families.values())
        assert all(len(method.shares) == len(method.scales) == STEPS for method in plan)
    assert set(methods.PROMPTED) <= {method.label for method in methods.compared(bench, "preference")}
    groups = list(methods.grouped(plan))
    assert sum(map(len, groups)) == len(plan) and all(len({m.lora for m in group}) == 1 for group in groups)
