"""CADS: noise on the prompt embedding that fades while denoising (Sadat et al., ICLR 2024, arXiv 2310.17347).

    y_i = sqrt(gamma_i) * y + s * sqrt(1 - gamma_i) * n,    then brought back to the mean and deviation of y

Early steps, which decide the layout, hardly see the prompt; late ones see it as it is. The empty prompt of classifier-free
guidance stays as it is. Of the paper's settings the mixing factor psi of the rescaling is fixed at 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

TAU_1, TAU_2 = 0.6, 0.9  # times, 1 is pure noise, between which the prompt fades in


def gamma(t: float) -> float:
    """The share of the prompt at time t in [0, 1]: 0 down to TAU_2, 1 from TAU_1 on, straight between."""
    return min(max((TAU_2 - t) / (TAU_2 - TAU_1), 0.0), 1.0)


def noised(y: Tensor, n: Tensor, scale: float, gamma: float) -> Tensor:
    """The embedding y (L, D) with noise n of the given scale, at the mean and deviation of y."""
    noisy = gamma**0.5 * y + scale * (1 - gamma) ** 0.5 * n
    return (noisy - noisy.mean()) / noisy.std() * y.std() + y.mean()


def change(scale: float, seed: int, steps: int) -> Callable[[int, Tensor], Tensor] | None:
    """What happens to the embedding (L, D) of the image of a seed at step i, time 1 - i/steps; None for scale 0.

    The noise depends on the seed and the step alone, so an image is the same in every grid.
    """
    if not scale:
        return None

    def at(step: int, y: Tensor) -> Tensor:
        share = gamma(1 - step / steps)
        if share == 1:
            return y
        n = np.random.default_rng((seed, step)).standard_normal(y.shape, dtype=np.float32)
        wide = y.float()  # 16 bits are too few for its mean and deviation
        return noised(wide, torch.from_numpy(n).to(wide), scale, share).to(y.dtype)

    return at
