"""Diversity of a set of images, as pure functions of their features (N, D) or class probabilities (N, V)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def distances(features: Tensor) -> Tensor:
    """Cosine distances (N, N), 1 - cos, in [0, 2], of features (N, D); ValueError if one is not finite."""
    unit = F.normalize(_checked(features, "Features", "D").double(), dim=1)
    return (1 - unit @ unit.T).clamp(0, 2).fill_diagonal_(0)


def mean_pairwise(distance: Tensor) -> Tensor:
    """Mean over pairs i < j of distances (N, N): an unbiased U-statistic, so comparable across N. NaN for N = 1."""
    n = len(distance)
    return distance.sum() / (n * (n - 1)) if n > 1 else distance.new_tensor(math.nan)


def vendi(features: Tensor, q: float = 1.0) -> float:
    """Vendi score of order q (Friedman and Dieng, arXiv 2210.02410; orders: arXiv 2310.12952), from 1 to N.

    The exponential of the Renyi entropy of the eigenvalues of K / N with the cosine kernel of features (N, D). It
    depends on N: compare equal N only. ValueError unless features are finite and q is a positive number.
    """
    if not 0 < q < math.inf:
        raise ValueError(f"The order of a Vendi score must be a positive finite number, not {q}.")
    unit = F.normalize(_checked(features, "Features", "D").double(), dim=1)
    p = torch.linalg.eigvalsh(unit @ unit.T / len(unit)).clamp(min=0)
    p = p[p > 1e-12] / p.sum()
    if q == 1:
        return float((-(p * p.log()).sum()).exp())
    return float((p**q).sum() ** (1 / (1 - q)))


def value_shares(probabilities: Tensor) -> Tensor:
    """Shares (V,) of the images that show each value, by the most probable value of each (N, V).

    Counts rather than mean probabilities: a classifier that hesitates between two values does not make a set diverse.
    ValueError without images or when a probability is not finite.
    """
    probabilities = _checked(probabilities, "Probabilities", "V")
    return torch.bincount(probabilities.argmax(1), minlength=probabilities.shape[1]).double() / len(probabilities)


def attribute_entropy(probabilities: Tensor) -> float:
    """Entropy of the value shares of (N, V) divided by log(min(N, V)), its bound: 0 = all alike, 1 = even.

    N images show at most N values, so dividing by log V would call any small set collapsed. Compare equal N only.
    """
    limit = min(probabilities.shape)
    p = value_shares(probabilities)
    p = p[p > 0]
    return float((p * p.log()).sum().abs() / math.log(limit)) if limit > 1 else 0.0  # never -0.0


def _checked(matrix: Tensor, what: str, width: str) -> Tensor:
    if matrix.ndim != 2 or 0 in matrix.shape:
        shape = tuple(matrix.shape)
        raise ValueError(f"{what} must be a matrix (N, {width}) with at least one image, not of shape {shape}.")
    if not torch.isfinite(matrix).all():
        raise ValueError(f"{what} must be finite, and one of these is NaN or infinite.")
    return matrix
