"""What the card works out from the measured rows."""

from __future__ import annotations

import math

import pytest

from aig.world import card

ROWS = [
    {"method": "base", "r": 0.0, "entropy": 1.0},
    {"method": "KL 0", "r": 4.0, "entropy": 0.2},
    {"method": "KL 1", "r": 1.0, "entropy": 0.9},
    {"method": "LoRA scale 0.5", "r": 2.0, "entropy": 0.4},
    {"method": "LoRA scale 2", "r": 3.0, "entropy": 0.0},
    {"method": "AIG power_2", "r": 3.0, "entropy": 0.7},
    {"method": "AIG steep", "r": 5.0, "entropy": 0.1},
]


def test_a_method_runs_from_the_base_to_the_model_tuned_without_kl_and_not_beyond():
    assert [row["method"] for row in card.by_strength(ROWS, "LoRA scale", "r")] == ["base", "LoRA scale 0.5", "KL 0"]
    assert [row["method"] for row in card.by_strength(ROWS, "KL", "r")] == ["base", "KL 1", "KL 0"]


def test_aig_is_compared_with_the_others_at_its_own_reward():
    inside, outside = card.at_equal_reward(ROWS, "r")
    assert inside["method"] == "AIG power_2" and len(inside) == len(card.METHODS)
    assert inside["above LoRA scale"] == pytest.approx(0.7 - 0.3)  # halfway between 0.4 at 2 and 0.2 at 4
    assert inside["above KL"] == pytest.approx(0.7 - (0.9 - 0.7 * 2 / 3))
    assert inside["above constant mix"] == pytest.approx(0.7 - 0.4)  # none was measured: the line from base to KL 0
    assert math.isnan(outside["above KL"])  # more reward than any of them has


def test_what_a_method_keeps_is_a_share_of_what_tuning_won_and_lost():
    kept = {row["method"]: row for row in card.kept(ROWS, "r")}
    assert kept["AIG power_2"]["gain kept"] == pytest.approx(0.75)
    assert kept["AIG power_2"]["entropy kept"] == pytest.approx(0.5 / 0.8)
