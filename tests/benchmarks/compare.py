"""``python -m tests.benchmarks.compare``: one comparison through the engine, against its model evaluations and the naive way.

Four images a column, 20 steps, guidance on, three columns. Everything is measured in one process, in turns, on an otherwise
idle machine: the run as the app does it, its model evaluations (rows) alone, and the naive way (three stock pipeline calls in float32, AIG
with two copies of the model, the LoRA loaded the stock way, nothing skipped or shared). ``--runs 60`` measures the memory instead.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from pathlib import Path

from aig.machine import cores

cores.settle()  # as the app does, before torch is loaded

import torch  # noqa: E402
from diffusers import StableDiffusionPipeline  # noqa: E402

from aig.assets import ASSETS  # noqa: E402
from aig.method import schedules  # noqa: E402
from aig.portraits import serving  # noqa: E402
from aig.runs.engine import Engine  # noqa: E402
from aig.runs.models import Model  # noqa: E402
from aig.runs.request import Request  # noqa: E402

REQUEST = Request(prompt="a person with glasses", images=4, steps=20, guidance=4.0, schedule="power_2")


def resident() -> float:
    """Gigabytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def memory(runs: int) -> dict[str, float]:
    """The app's resident memory after 10 runs and after all, of changing size, tuned model and columns."""
    engine, found = Engine(serving.load), {}
    tunings = engine.facts().tunings
    for i in range(runs):
        name = list(tunings)[i % len(tunings)]
        kl, added = tunings[name][i % len(tunings[name])], (("code:2",), ("scheduled:power_2",), ())[i % 3]
        for _ in engine.stream(Request(images=1 + i % 4, steps=4 + i % 3, tuning=name, kl=kl, seed=i, columns=added)):
            pass
        if i + 1 in (10, runs):
            found[f"memory after {i + 1} runs (GB)"] = resident()
    engine.close()
    return found


def ours(engine: Engine) -> dict[str, float]:
    """Seconds to the first preview and to the end, and the model evaluations."""
    start, first = time.perf_counter(), None
    for update in engine.stream(REQUEST):
        if first is None and update.images is not None:
            first = time.perf_counter() - start
    return {"first preview": first, "run": time.perf_counter() - start, "rows": update.rows}


@torch.no_grad()
def rows_alone(model: Model, rows: int) -> float:
    """Seconds of the run's denoiser rows and nothing else, in the batches in which the run makes them."""
    unet, steps, images = model.pipe.unet, REQUEST.steps, REQUEST.images
    config = unet.config
    text = torch.randn(1, model.facts.max_words + 2, config.cross_attention_dim)
    shares = schedules.shares(REQUEST.schedule, steps)
    start, done = time.perf_counter(), 0
    for i, g in enumerate(shares):
        same = i == 0 or not any(shares[:i])
        for batch in (images * 2 * (1 if same else 2), images * 2 * (1 if g == 0 else 2)):
            x = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size)
            unet(x, torch.tensor(500), text.expand(batch, -1, -1), return_dict=False)
            done += batch
    seconds = time.perf_counter() - start
    return seconds * rows / done


@torch.no_grad()
def naive(base: StableDiffusionPipeline, tuned: StableDiffusionPipeline) -> float:
    """Seconds of base, tuned and AIG one after the other."""

    def noise():
        return [torch.Generator().manual_seed(seed) for seed in REQUEST.seeds]

    prompts = [REQUEST.prompt] * REQUEST.images
    settings = {"num_inference_steps": REQUEST.steps, "guidance_scale": REQUEST.guidance}
    start = time.perf_counter()
    for pipe in (base, tuned):
        pipe(prompts, generator=noise(), **settings)
    shares = iter(schedules.shares(REQUEST.schedule, REQUEST.steps))
    plain = base.unet.forward

    def mixed(*args, **kwargs):
        g = next(shares)
        return (torch.lerp(plain(*args, **kwargs)[0], tuned.unet(*args, **kwargs)[0], g),)

    base.unet.forward = mixed
    try:
        base(prompts, generator=noise(), **settings)
    finally:
        del base.unet.forward
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="instead, the memory after 10 and after N runs, such as 60")
    options = parser.parse_args()
    if options.runs:
        print(json.dumps(memory(options.runs), indent=1))
        return
    rounds = options.rounds
    model = serving.load()
    engine = Engine(lambda: model)
    ours(engine)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    folder = ASSETS / "portraits"

    def stock() -> StableDiffusionPipeline:
        pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    base, tuned = stock(), stock()
    tuned.load_lora_weights(folder / "loras", weight_name=f"{REQUEST.tuning}-kl-{REQUEST.kl:g}.safetensors")
    naive(base, tuned)
    results = []
    for _ in range(rounds):
        run = ours(engine)
        run["rows alone"] = rows_alone(model, run["rows"])
        run["naive"] = naive(base, tuned)
        results.append(run)
    engine.close()
    median = {name: statistics.median(r[name] for r in results) for name in results[0]}
    median["run / rows alone"] = statistics.median(r["run"] / r["rows alone"] for r in results)
    median["run / naive"] = statistics.median(r["run"] / r["naive"] for r in results)
    median["memory of the app (GB)"] = peak
    median["machine"] = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {model.facts.precision}"
    )
    print(json.dumps(median, indent=1))


if __name__ == "__main__":
    main()
