"""Tradeoff curves: which points no other beats, how much of the plane they cover, and what one method has more at an equal reward.

A family is one method at several strengths. Every score is an ``Estimate`` over the same seeds, so that differences are paired
and their jackknife intervals hold the errors of both curves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from aig.measures.intervals import Estimate, covariance

Point = tuple[Estimate, Estimate]  # reward and another score of one strength


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats in both numbers, by falling first number."""
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1])):
        if not kept or points[i][1] > points[kept[-1]][1]:
            kept.append(i)
    return kept


def hypervolume(points: Sequence[tuple[float, float]], worst: tuple[float, float]) -> float:
    """The area that points dominate above ``worst``, which is 0 for points that are nowhere above it (Zitzler and Thiele, 1998)."""
    inside = [point for point in points if point[0] > worst[0] and point[1] > worst[1]]
    area, covered = 0.0, worst[1]
    for i in front(inside):
        area += (inside[i][0] - worst[0]) * (inside[i][1] - covered)
        covered = inside[i][1]
    return area


def at_reward(reward: Estimate, family: Sequence[Point]) -> Estimate:
    """The score of a family at a reward: on straight lines between its strengths in the order of their rewards.

    The value and each of its N versions with one image left out lie on lines of their own. A reward beyond a line's end takes
    the end's score.
    """
    xs, ys = (np.stack([_versions(point[i]) for point in family]) for i in (0, 1))  # (strengths, 1 + N)
    found = []
    for i, at in enumerate(_versions(reward)):
        order = xs[:, i].argsort(kind="stable")
        found.append(np.interp(at, xs[order, i], ys[order, i]))
    return Estimate(float(found[0]), torch.tensor(found[1:], dtype=torch.float64))


def between(low: Estimate, high: Estimate, share: float) -> Estimate:
    """The reward at a share of the way from one to the other."""
    return Estimate(low.value + share * (high.value - low.value), low.left_out + share * (high.left_out - low.left_out))


def p_value(difference: Estimate) -> float:
    """Two-sided p-value of a difference being 0, by Student's t with the jackknife's standard error; 1 where nothing differs."""
    from scipy.stats import t

    error = math.sqrt(max(0.0, covariance(difference, difference)))
    if not error:
        return 1.0 if difference.value == 0 else 0.0
    return float(2 * t.sf(abs(difference.value) / error, len(difference.left_out) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, Scand. J. Statist. 6, 1979): the i-th smallest of m times m - i, made monotone."""
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = largest
    return corrected


def _versions(estimate: Estimate) -> np.ndarray:
    """The value and its versions with one image left out, (1 + N,)."""
    return np.array([estimate.value, *estimate.left_out.tolist()])
