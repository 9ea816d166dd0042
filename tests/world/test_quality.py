"""Distances between sets of pictures, against closed forms."""

from __future__ import annotations

import pytest
import torch

from aig.world.quality import frechet, precision_recall, total_variation


def test_frechet_distance_of_gaussians():
    x = torch.randn(50_000, 4, generator=torch.Generator().manual_seed(0))
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)
    shift, scale = torch.tensor([1.0, 0.0, -2.0, 0.0]), torch.tensor([1.0, 2.0, 1.0, 0.5])
    expected = 5 + (1 - 2) ** 2 + (1 - 0.5) ** 2  # |m|^2 + sum (s - t)^2 for diagonal covariances
    assert frechet(x, x * scale + shift) == pytest.approx(expected, rel=0.02)


def test_precision_and_recall_tell_missing_modes_from_bad_pictures():
    rng = torch.Generator().manual_seed(0)
    modes = torch.randn(8, 16, generator=rng) * 20
    real = modes[torch.arange(800) % 8] + torch.randn(800, 16, generator=rng)
    collapsed = modes[torch.arange(800) % 2] + torch.randn(800, 16, generator=rng)
    precision, recall = precision_recall(real, collapsed)
    assert precision > 0.5 and recall < 0.35
    precision, recall = precision_recall(real, torch.randn(800, 16, generator=rng) * 20 + 100)
    assert precision == 0 and recall == 0
    assert precision_recall(real, real) == (1, 1)
    with pytest.raises(ValueError, match="more than 3 pictures a set, not 3 and 800"):
        precision_recall(real[:3], real)


def test_total_variation():
    assert total_variation(torch.tensor([0.5, 0.5, 0]), torch.tensor([0, 0.5, 0.5])) == pytest.approx(0.5)
