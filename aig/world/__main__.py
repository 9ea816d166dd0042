"""``python -m aig.world <stage> --preset cpu``: make the embedded world, stage by stage or all of it; resumable."""

from __future__ import annotations

import argparse
import importlib

from tqdm import tqdm

from aig.machine import cores
from aig.world.presets import PRESETS

#: Stage -> (module, generator function), in the order in which they run.
STAGES = {
    "data": ("data", "make"),
    "autoencoder": ("autoencoder", "train"),
    "ruler": ("ruler", "train"),
    "denoiser": ("denoiser", "train"),
    "rewards": ("preference", "train"),
    "draft": ("draft", "train"),
    "ship": ("ship", "run"),
    "evaluate": ("evaluate", "run"),
    "figures": ("figures", "run"),
}


def run(stage: str, preset, **settings: int | str) -> None:
    """Run one stage with a progress bar; a finished stage returns at once."""
    module, function = STAGES[stage]
    generator = getattr(importlib.import_module(f"aig.world.{module}"), function)(preset, **settings)
    with tqdm(desc=f"{stage} ({preset.name})", unit="step", mininterval=2) as bar:
        for row in generator:
            step, bar.total = row.pop("step"), row.pop("steps")
            if step < bar.n:  # the next part of the stage
                bar.reset(bar.total)
            bar.set_postfix({name: f"{value:.4g}" for name, value in row.items()}, refresh=False)
            bar.update(step - bar.n)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m aig.world", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--part", default="", help="of evaluate: measure this one alone and keep it for a run without --part; or: finished")
    parser.add_argument("--samples", type=int, default=10_000, help="that evaluate draws for the prompts (default: 10000)")
    parser.add_argument("--tuning", default="", help="of draft: tune this model alone")
    arguments = parser.parse_args()
    settings = {"evaluate": {"samples": arguments.samples, "part": arguments.part}, "draft": {"tuning": arguments.tuning}}
    cores.settle()  # before a stage loads torch
    for stage in STAGES if arguments.stage == "all" else [arguments.stage]:
        run(stage, PRESETS[arguments.preset], **settings.get(stage, {}))


if __name__ == "__main__":
    main()
