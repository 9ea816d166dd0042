"""Fronts, hypervolumes and differences at an equal reward, against cases that are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aig.measures.fronts import at_reward, between, front, holm, hypervolume, p_value
from aig.measures.intervals import Estimate, mean


def exact(value: float, n: int = 4) -> Estimate:
    return Estimate(value, torch.full((n,), value, dtype=torch.float64))


def test_the_front_has_what_no_other_point_beats():
    points = [(0, 3), (1, 2), (1, 1), (2, 2), (3, 0), (0, 3)]
    assert front(points) == [4, 3, 0]
    assert front([]) == []


def test_a_hypervolume_is_the_area_of_the_union_of_boxes():
    assert hypervolume([(1, 1)], (0, 0)) == 1
    assert hypervolume([(2, 1), (1, 2)], (0, 0)) == pytest.approx(3)
    assert hypervolume([(2, 1), (1, 2), (1, 1), (0.5, 0.5)], (0, 0)) == pytest.approx(3)  # beaten points add nothing
    assert hypervolume([(2, 3)], (1, 1)) == pytest.approx(2)
    assert hypervolume([(0, 5), (5, 0)], (0, 0)) == 0


def test_a_hypervolume_agrees_with_counting_a_fine_grid():
    points = np.random.default_rng(0).random((12, 2))
    at = (np.stack(np.meshgrid(*[np.arange(400)] * 2), -1).reshape(-1, 2) + 0.5) / 400
    covered = (at[:, None] <= points).all(2).any(1).mean()
    assert hypervolume([tuple(p) for p in points], (0, 0)) == pytest.approx(covered, abs=0.01)


def test_at_a_reward_a_family_lies_on_lines_whatever_its_order():
    family = [(exact(4.0), exact(0.2)), (exact(0.0), exact(1.0)), (exact(2.0), exact(0.4))]
    for reward, score in ((1.0, 0.7), (3.0, 0.3), (2.0, 0.4), (9.0, 0.2), (-1.0, 1.0)):
        found = at_reward(exact(reward), family)
        assert found.value == pytest.approx(score) and found.left_out.tolist() == pytest.approx([score] * 4)
    assert between(exact(1.0), exact(3.0), 0.25).value == 1.5


def test_the_interval_of_a_difference_at_a_reward_covers_it_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=32)
        at = lambda value: mean(torch.tensor(value + 0.1 * (shared + rng.normal(size=32))))  # noqa: B023, E731
        line = [(at(0.0), at(1.0)), (at(2.0), at(0.4)), (at(4.0), at(0.2))]
        interval = (at(0.7) - at_reward(at(3.0), line)).interval()
        hits += interval.low <= 0.4 <= interval.high
    assert 0.9 <= hits / 200 <= 0.99


def test_p_values_are_those_of_the_t_test_and_agree_with_the_interval():
    values = torch.tensor([0.3, -0.1, 0.5, 0.2, 0.4])
    from scipy.stats import ttest_1samp

    assert p_value(mean(values)) == pytest.approx(ttest_1samp(values.numpy(), 0).pvalue)
    assert (p_value(mean(values)) < 0.05) == mean(values).interval().excludes(0)
    assert p_value(exact(0.0)) == 1 and p_value(exact(0.5)) == 0


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
