"""Diversity measures against brute force and analytic cases."""

from __future__ import annotations

import math

import pytest
import torch

from aig.measures.diversity import attribute_entropy, distances, mean_pairwise, value_shares, vendi


def test_distances_and_their_mean_equal_the_double_loop():
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    d = distances(x)
    pairs = []
    for i in range(7):
        for j in range(7):
            expected = 1 - float(x[i] @ x[j] / (x[i].norm() * x[j].norm()))
            assert float(d[i, j]) == pytest.approx(expected if i != j else 0, abs=1e-6)
            if i < j:
                pairs.append(expected)
    assert float(mean_pairwise(d)) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_equal_images_have_no_diversity_and_orthogonal_ones_have_all():
    same, different = torch.ones(5, 8), torch.eye(5, 8)
    assert float(mean_pairwise(distances(same))) == pytest.approx(0, abs=1e-9)
    assert float(mean_pairwise(distances(different))) == pytest.approx(1)
    for q in (0.5, 1, 2):
        assert vendi(same, q) == pytest.approx(1)
        assert vendi(different, q) == pytest.approx(5)


def test_vendi_of_two_equal_groups_is_two():
    x = torch.eye(2, 6).repeat_interleave(4, 0)
    assert vendi(x) == pytest.approx(2) == vendi(x, 2)


def test_vendi_of_unequal_groups_has_their_entropy():
    x = torch.eye(2, 6)[[0, 0, 0, 1]]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert vendi(x, 1) == pytest.approx(math.exp(entropy))
    assert vendi(x, 2) == pytest.approx(1 / (0.75**2 + 0.25**2))


@pytest.mark.parametrize("q", [0, -1, math.inf, math.nan])
def test_vendi_refuses_orders_without_a_formula(q):
    with pytest.raises(ValueError, match="order"):
        vendi(torch.eye(3), q)


def test_one_image_has_no_diversity():
    assert math.isnan(float(mean_pairwise(distances(torch.ones(1, 3)))))
    assert vendi(torch.ones(1, 3)) == pytest.approx(1)


@pytest.mark.parametrize("measure", [distances, vendi, value_shares, attribute_entropy])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(measure, bad):
    with pytest.raises(ValueError, match="finite"):
        measure(torch.tensor([[1.0, bad], [0.0, 1.0]]))


@pytest.mark.parametrize("measure", [distances, vendi, value_shares, attribute_entropy])
@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 3, 4)])
def test_what_is_not_a_matrix_of_images_is_refused(measure, shape):
    with pytest.raises(ValueError, match="matrix"):
        measure(torch.ones(shape))


def test_attribute_entropy_is_one_for_uniform_values_and_zero_for_one_value():
    classes = torch.eye(4).repeat(3, 1)
    assert attribute_entropy(classes) == pytest.approx(1)
    assert attribute_entropy(torch.eye(4)[:1].repeat(9, 1)) == 0
    assert attribute_entropy(torch.eye(9)[:3]) == pytest.approx(1)  # three images can show three values at most
    assert value_shares(classes).tolist() == [0.25] * 4
    assert attribute_entropy(torch.eye(4)[:1]) == 0
