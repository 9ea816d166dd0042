"""Jackknife intervals against explicit leave-one-out, analytic cases, and their coverage in a simulation."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from aig.measures.diversity import distances, mean_pairwise
from aig.measures.intervals import Estimate, diversity, mean, ratio, t_quantile


def features(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) + 0.5


def leave_one_out(d: torch.Tensor) -> torch.Tensor:
    keep = [[j for j in range(len(d)) if j != i] for i in range(len(d))]
    return torch.stack([mean_pairwise(d[k][:, k]) for k in keep])


def test_the_closed_form_is_the_leave_one_out():
    d = distances(features(9, 0))
    torch.testing.assert_close(diversity(d).left_out, leave_one_out(d))


def test_paired_differences_are_the_leave_one_out_of_the_difference():
    a, b = distances(features(8, 1)), distances(features(8, 2))
    left = leave_one_out(a) - leave_one_out(b)
    error = math.sqrt(float(7 / 8 * (left - left.mean()).square().sum()))
    interval = (diversity(a) - diversity(b)).interval()
    assert interval.high - interval.value == pytest.approx(t_quantile(7, 0.95) * error)
    assert interval.value == pytest.approx(float(mean_pairwise(a) - mean_pairwise(b)))


def test_the_interval_of_a_mean_is_the_t_interval():
    x = features(10, 3)[:, 0].double()
    low, high = stats.t.interval(0.95, 9, loc=x.mean(), scale=stats.sem(x))
    interval = mean(x).interval()
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_the_ratio_of_an_exact_multiple_is_exact():
    a = mean(features(8, 4)[:, 0] + 10)
    half = Estimate(a.value / 2, a.left_out / 2)
    interval = ratio(half, a)
    assert (interval.low, interval.value, interval.high) == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))


def test_a_ratio_with_a_denominator_that_may_be_zero_is_unknown():
    noise = mean(torch.tensor([-1.0, 1.0, -1.0, 1.0, 0.1]))
    assert ratio(mean(torch.ones(5)), noise).high == math.inf


def test_two_images_tell_nothing():
    assert diversity(distances(features(2, 5))).interval().high == math.inf


def test_unequal_sizes_are_refused():
    with pytest.raises(ValueError, match="equal size"):
        mean(torch.ones(4)) - mean(torch.ones(5))


def test_one_image_excludes_nothing():
    assert not diversity(torch.zeros(1, 1)).interval().excludes(0)
    assert not mean(torch.ones(1)).interval().excludes(0)


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        mean(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="finite"):
        diversity(torch.full((3, 3), math.inf))


@pytest.mark.parametrize("share", [0.0, 0.37, 0.9, 1.3])
def test_every_exact_share_is_known_whatever_the_rounding(share):
    for seed in range(50):
        whole = mean(features(8, seed)[:, 0] + 10)
        interval = ratio(Estimate(whole.value * share, whole.left_out * share), whole)
        assert (interval.low, interval.high) == (pytest.approx(share), pytest.approx(share))


def test_the_ends_of_a_ratio_are_where_the_difference_is_just_possible():
    x = features(9, 7).double()
    part, whole = mean(x[:, 0] + 2), mean(x[:, 1] + 5)
    interval = ratio(part, whole)
    for rho in (interval.low, interval.high):
        rest = Estimate(part.value - rho * whole.value, part.left_out - rho * whole.left_out).interval()
        assert min(abs(rest.low), abs(rest.high)) == pytest.approx(0, abs=1e-9)


N, TRIALS = 8, 1_500
CENTRES = torch.randn(4, 64, generator=torch.Generator().manual_seed(6))


def test_coverage_at_eight_images():
    """A 64-d mixture of four Gaussians: 95% intervals cover 93%, and those of pairs as if independent do not."""
    rng = torch.Generator().manual_seed(7)

    def draw(n: int) -> torch.Tensor:
        modes = torch.randint(4, (n,), generator=rng)
        return CENTRES[modes] + 0.7 * torch.randn(n, 64, generator=rng)

    truth = float(mean_pairwise(distances(draw(3_000))))
    hits, naive = 0, 0
    for _ in range(TRIALS):
        d = distances(draw(N))
        hits += not diversity(d).interval().excludes(truth)
        pairs = d[tuple(torch.triu_indices(N, N, 1))]
        naive += abs(float(pairs.mean()) - truth) <= 1.96 * float(pairs.std()) / math.sqrt(len(pairs))
    assert hits / TRIALS >= 0.93
    assert naive / TRIALS < 0.93


def test_coverage_of_a_kept_share_at_eight_images():
    """Three columns of the same seeds; tuning pulls every image towards one mode, and the middle column less so."""
    rng = torch.Generator().manual_seed(8)

    def draw(n: int) -> list[torch.Tensor]:
        modes, noise = torch.randint(4, (n,), generator=rng), torch.randn(n, 64, generator=rng)
        pull = torch.randn(n, 1, generator=rng)
        away = CENTRES[modes] - CENTRES[0]
        return [CENTRES[0] + torch.sigmoid(pull + k) * away + 0.5 * noise for k in (8.0, -1.1, 0.8)]

    base, tuned, aig = (float(mean_pairwise(distances(x))) for x in draw(3_000))
    truth, hits = (aig - tuned) / (base - tuned), 0
    for _ in range(TRIALS):
        base, tuned, aig = (diversity(distances(x)) for x in draw(N))
        hits += not ratio(aig - tuned, base - tuned).excludes(truth)
    assert hits / TRIALS >= 0.88
