"""Any reward by name: published, or the embedded world's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from aig.assets import ASSETS
from aig.method.code import Reward
from aig.portraits import serving
from aig.published import scorers


def load(
    name: str,
    source: str | Path | Mapping[str, str | Path] | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Reward:
    """A frozen reward by name: published, see ``aig.published.scorers.load``, or the embedded world's, always float32.

    ``source`` is where its files are: by default the Hub's cache, or the embedded world's asset folder. ValueError
    names the choices.
    """
    if name in scorers.SCORERS:
        return scorers.load(name, source, device=device, dtype=dtype)
    if isinstance(source, Mapping):
        raise ValueError(f"The reward {name!r} is not read from single files; only {', '.join(scorers.SCORERS)} are.")
    rewards = serving.load_rewards(ASSETS / serving.WORLDS[0] if source is None else Path(source), device)
    if name not in rewards:
        raise ValueError(f"Unknown reward {name!r}; choose one of: {', '.join([*rewards, *scorers.SCORERS])}.")
    return rewards[name]
