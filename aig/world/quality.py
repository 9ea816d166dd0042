"""Distances between two sets of pictures, by their features: Fréchet distance, precision and recall, total variation."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians that fit a (N, D) and b (M, D); FID (arXiv 1706.08500) on features of one's own.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), in float64. Needs more rows than D in both to mean anything.
    """
    a, b = a.double(), b.double()
    covariance_a, covariance_b = a.T.cov(), b.T.cov()
    # The eigenvalues of A B are real and not negative, and the trace of its square root is the sum of their roots.
    roots = torch.linalg.eigvals(covariance_a @ covariance_b).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * roots)


def precision_recall(real: Tensor, drawn: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991) of drawn (M, D) against real (N, D) features.

    Precision: the share of drawn pictures inside a ball around a real one that reaches to its k-th real neighbour; recall:
    the same with the roles changed. ValueError unless both have more than k rows.
    """
    if min(len(real), len(drawn)) <= k:
        raise ValueError(f"precision and recall with k = {k} need more than {k} pictures a set, not {len(real)} and {len(drawn)}")
    return float(covered(drawn, real, k).mean()), float(covered(real, drawn, k).mean())


def covered(points: Tensor, support: Tensor, k: int = 3) -> Tensor:
    """Which points (M, D) lie within the k-NN balls of support (N, D), 1 or 0 each (M,); the mean is precision if the support is real."""
    radii = torch.cat([torch.cdist(rows, support).kthvalue(k + 1).values for rows in support.split(500)])  # the first is itself
    return torch.cat([(torch.cdist(rows, support) <= radii).any(1) for rows in points.split(500)]).float()


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half of the L1 distance of two distributions (V,), 0 to 1."""
    return float((p - q).abs().sum() / 2)
