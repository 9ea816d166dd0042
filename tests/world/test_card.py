"""What the card works out from the measured rows."""

from __future__ import annotations

import pytest

from aig.world import card

ROWS = [
    {"method": "base", "r": 0.0, "entropy": 1.0, "diversity": 0.9},
    {"method": "KL 0", "r": 4.0, "entropy": 0.2, "diversity": 0.1},
    {"method": "AIG power_2", "r": 3.0, "entropy": 0.7, "diversity": 0.3},
]


def test_what_a_method_keeps_is_a_share_of_what_tuning_won_and_lost():
    kept = {row["method"]: row for row in card.kept(ROWS, "r")}["AIG power_2"]
    assert (kept["gain kept"], kept["entropy kept"], kept["diversity kept"]) == pytest.approx((0.75, 0.5 / 0.8, 0.25))


def test_comparisons_at_an_equal_reward_are_a_line_for_each_score_and_schedule():
    found = {"method": "AIG power_2", "more": 0.05, "low": -0.014, "high": 0.114}
    rows = [found | {"other": "KL", "score": "entropy"}, found | {"other": "LoRA scale", "score": "diversity"}]
    first, second = card.compared(rows)
    assert first["score"] == "entropy" and first["above KL"] == "+0.050 (-0.01 to +0.11)" and first["above LoRA scale"] == ""
    assert second["score"] == "diversity" and second["above KL"] == ""
