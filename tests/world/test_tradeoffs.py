"""Comparisons at an equal reward: which rows a method has, lines between them, intervals of the difference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aig.diversity import attribute_entropy
from aig.intervals import Estimate, mean
from aig.world import tradeoffs

MEANS = {  # (reward, entropy)
    "base": (0.0, 1.0),
    "KL 0": (4.0, 0.2),
    "KL 1": (1.0, 0.9),
    "LoRA scale 0.5": (2.0, 0.4),
    "LoRA scale 2": (3.0, 0.0),
    "AIG power_2": (3.0, 0.7),
    "AIG steep": (5.0, 0.1),
}


def measured(seed: int = 0, noise: float = 0.0, images: int = 32) -> dict[str, dict[str, Estimate]]:
    """Rows whose scores are means over images of which a part is the same in every row, as with shared seeds."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=images)
    rows = {}
    for label, values in MEANS.items():
        own = {name: value + noise * (shared + rng.normal(size=images)) for name, value in zip(("r", "entropy"), values, strict=True)}
        own |= {name: own["entropy"] for name in tradeoffs.COMPARED}
        rows[label] = {name: mean(torch.tensor(column)) for name, column in own.items()}
    return rows


def test_a_method_runs_from_the_base_to_the_model_tuned_without_kl_and_not_beyond():
    assert tradeoffs.members(MEANS, "LoRA scale") == ["base", "KL 0", "LoRA scale 0.5"]
    assert tradeoffs.members(MEANS, "KL") == ["base", "KL 0", "KL 1"]


def test_aig_is_compared_with_the_others_at_its_own_reward():
    found = tradeoffs.at_equal_reward(measured(), "r")
    more = {row["other"]: row["more"] for row in found if row["score"] == "entropy"}
    assert more == {
        "LoRA scale": pytest.approx(0.7 - 0.3),  # halfway between 0.4 at 2 and 0.2 at 4
        "KL": pytest.approx(0.7 - (0.9 - 0.7 * 2 / 3)),
        "constant mix": pytest.approx(0.7 - 0.4),  # none was measured: the line from base to KL 0
        "tuning stopped early": pytest.approx(0.7 - 0.4),
    }
    assert {row["method"] for row in found} == {"AIG power_2"}  # the other has more reward than any of them
    assert [row["score"] for row in found] == [score for score in tradeoffs.COMPARED for _ in range(4)]


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        row = next(r for r in tradeoffs.at_equal_reward(measured(seed, noise=0.1), "r") if r["other"] == "LoRA scale")
        assert row["low"] < row["more"] < row["high"]
        hits += row["low"] <= 0.4 <= row["high"]
    assert 0.9 <= hits / 200 <= 0.99


def test_entropy_is_that_of_the_shares_with_each_image_left_out():
    p = torch.eye(3)[torch.tensor([0, 0, 1, 2])]
    found = tradeoffs.entropy({"a": p, "b": p[[0, 1, 1, 0]]})
    assert found.value == pytest.approx((attribute_entropy(p) + attribute_entropy(p[[0, 1, 1, 0]])) / 2)
    assert found.left_out[2] == pytest.approx((attribute_entropy(p[[0, 1, 3]]) + attribute_entropy(p[[0, 1, 0]])) / 2)
