"""``python -m tests.benchmarks.precision``: what bfloat16 changes in the pictures and scores of the embedded world, and in seconds.

The same run in float32 and in bfloat16, in turns. For every score of every column it prints how far bfloat16 moves it, as a
share of the width of its 95% interval; on a processor without such instructions bfloat16 is right but slow.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from aig.machine import cores

cores.settle()  # as the app does, before torch is loaded

import numpy as np  # noqa: E402

from aig.machine.precision import PRECISIONS, choose  # noqa: E402
from aig.measures.intervals import Interval  # noqa: E402
from aig.portraits import serving  # noqa: E402
from aig.runs.comparison import Update  # noqa: E402
from aig.runs.engine import Engine  # noqa: E402
from aig.runs.request import Request  # noqa: E402


def intervals(update: Update) -> dict[str, Interval]:
    """All scores of a run that have an interval."""
    return {
        f"{column.name}, {name}": interval
        for column in update.scores.columns
        for name, interval in (*column.rewards.items(), ("diversity", column.diversity))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    request = Request(prompt="a person with glasses", images=options.images, steps=options.steps)
    engines = {}
    for name in PRECISIONS:
        model = serving.load()
        choose(model.pipe.unet, wanted=name)
        engines[name] = Engine(lambda model=model: model)
    last, seconds = {}, {name: [] for name in engines}
    for _ in range(options.rounds):
        for name, engine in engines.items():
            start = time.perf_counter()
            *_, last[name] = engine.stream(request)
            seconds[name].append(time.perf_counter() - start)
    for engine in engines.values():
        engine.close()
    wide, narrow = (intervals(last[name]) for name in engines)
    moved = {key: abs(narrow[key].value - wide[key].value) / (wide[key].high - wide[key].low) for key in wide}
    pictures = np.abs(last["float32"].images.astype(int) - last["bfloat16"].images)
    result = {
        "scores moved, of their intervals": {key: round(share, 3) for key, share in moved.items()},
        "the most": round(max(moved.values()), 3),
        "pixels moved, of 255, mean and 99%": [round(float(pictures.mean()), 2), int(np.quantile(pictures, 0.99))],
        "run (s)": {name: round(statistics.median(times), 2) for name, times in seconds.items()},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
