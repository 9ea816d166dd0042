"""What the card works out from the measured rows."""

from __future__ import annotations

import pytest

from aig.world import card

ROWS = [
    {"method": "base", "r": {"value": 0.0}, "entropy": {"value": 1.0}, "diversity": {"value": 0.9}},
    {"method": "tuned", "r": {"value": 4.0}, "entropy": {"value": 0.2}, "diversity": {"value": 0.1}},
    {"method": "AIG power_2", "r": {"value": 3.0}, "entropy": {"value": 0.7}, "diversity": {"value": 0.3}},
]


def test_what_a_method_keeps_is_a_share_of_what_tuning_won_and_lost():
    kept = {row["method"]: row for row in card.kept(ROWS, "r")}["AIG power_2"]
    assert (kept["gain kept"], kept["entropy kept"], kept["diversity kept"]) == pytest.approx((0.75, 0.5 / 0.8, 0.25))


def test_comparisons_are_counted_by_what_is_sure_after_correction():
    row = {"family": "AIG power", "other": "KL", "score": "entropy", "low": -0.014, "high": 0.114}
    rows = [
        row | {"share": 0.5, "value": 0.05, "p": 0.2}, row | {"share": 0.8, "value": 0.09, "p": 0.001},
        row | {"share": 0.8, "value": -0.2, "p": 0.001, "score": "diversity"},
    ]  # fmt: skip
    text = "\n".join(card.at_equal_reward(rows))
    assert "| AIG power | entropy | 1 | 1 | 0 |" in text and "| AIG power | diversity | 0 | 0 | 1 |" in text
    assert "| AIG power | KL | entropy | +0.050 (-0.01 to +0.11) | +0.090* (-0.01 to +0.11) |" in text
    assert card.at_equal_reward([]) == []
