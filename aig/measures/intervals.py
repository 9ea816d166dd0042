"""Confidence intervals by the jackknife: leave one image out, in every column at once.

The mean pairwise distance of N images has N(N-1)/2 pairs but only N independent parts, so the standard error of the
pairs is far too small. The jackknife over images also serves differences between columns that share their seeds.

No resampling knows of what it never drew: where rare images carry most of the diversity (one in ten from another mode),
the intervals of a few images are too narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from aig.measures.diversity import mean_pairwise


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its confidence interval from ``n`` images; infinite ends mean that nothing is known."""

    value: float
    low: float
    high: float
    n: int

    def excludes(self, value: float) -> bool:
        """Whether the value lies outside; never where an end is NaN."""
        return value < self.low or value > self.high


@dataclass(frozen=True)
class Estimate:
    """A statistic of N images and its values with each image left out (N,); differences are paired by image."""

    value: float
    left_out: Tensor

    def __sub__(self, other: Estimate) -> Estimate:
        if len(self.left_out) != len(other.left_out):
            sizes = f"{len(self.left_out)} and {len(other.left_out)}"
            raise ValueError(f"Only columns of equal size are compared, not {sizes} images.")
        return Estimate(self.value - other.value, self.left_out - other.left_out)

    def interval(self, level: float = 0.95) -> Interval:
        """Student's t with N - 1 degrees of freedom around the estimate."""
        n = len(self.left_out)
        half = t_quantile(n - 1, level) * math.sqrt(covariance(self, self)) if n > 1 else math.inf
        half = half if math.isfinite(half) else math.inf
        return Interval(value=self.value, low=self.value - half, high=self.value + half, n=n)


def mean(values: Tensor) -> Estimate:
    """The mean of (N,) values; its jackknife interval is the ordinary t interval."""
    values = _finite(values.double())
    n = len(values)
    return Estimate(float(values.mean()), (values.sum() - values) / max(1, n - 1))


def diversity(distance: Tensor) -> Estimate:
    """The mean pairwise distance of (N, N) distances, by the closed form theta_(-i) = (S - 2 r_i) / ((N-1)(N-2))."""
    distance = _finite(distance.double())
    n, total, rows = len(distance), distance.sum(), distance.sum(1)
    left_out = (total - 2 * rows) / ((n - 1) * (n - 2)) if n > 2 else torch.full((n,), math.nan)
    return Estimate(float(mean_pairwise(distance)), left_out)


def covariance(a: Estimate, b: Estimate) -> float:
    """Jackknife covariance of two statistics of the same images: (N-1)/N sum (a_i - mean a)(b_i - mean b)."""
    n = len(a.left_out)
    da, db = a.left_out - a.left_out.mean(), b.left_out - b.left_out.mean()
    return float((n - 1) / n * (da * db).sum())


def ratio(numerator: Estimate, denominator: Estimate, level: float = 0.95) -> Interval:
    """Fieller's interval of a ratio of statistics of the same images.

    It has every rho for which numerator - rho * denominator may be zero. Unlike the delta method it is infinite when
    the denominator may be zero. The level is meant over all runs: among those alone whose interval comes out narrow it
    covers less, and much less below eight images.
    """
    n, b = len(numerator.left_out), denominator.value
    value = numerator.value / b if b else math.nan
    t2 = t_quantile(n - 1, level) ** 2
    margin = b * b - t2 * covariance(denominator, denominator)  # positive when the denominator's interval excludes 0
    if n < 3 or not margin > 0:
        return Interval(value=value, low=-math.inf, high=math.inf, n=n)
    # (a - rho b)^2 <= t^2 var(a - rho b) is a quadratic in rho. Around a / b its discriminant is a sum of squares, so
    # that rounding cannot make it negative where the columns are multiples of each other.
    residual = Estimate(0.0, numerator.left_out - value * denominator.left_out)
    c = t2 * covariance(residual, denominator)
    half = math.sqrt(t2 * covariance(residual, residual) * margin + c * c) / margin
    return Interval(value=value, low=value - c / margin - half, high=value - c / margin + half, n=n)


@cache
def t_quantile(degrees: int, level: float) -> float:
    """Two-sided quantile of Student's t; infinite without degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, degrees)) if degrees > 0 else math.inf


def _finite(values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise ValueError("Scores need finite numbers, and one of these is NaN or infinite.")
    return values
