"""Stage ``evaluate``: measure the shipped asset on held-out drawings and fresh samples; the card is written from the result.

Each part is a generator that yields progress and returns its figures; finished parts are kept in ``work/evaluation`` for
exactly the files that they measure, so a killed evaluation resumes, and new LoRAs do not make the base model's figures old.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import diffusers
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler

from aig.assets import ASSETS
from aig.measures.diversity import value_shares
from aig.method.replaced import replaced
from aig.portraits.captions import caption, named_attributes, sentence
from aig.portraits.population import ATTRIBUTES, NONE, decode
from aig.runs.request import Request
from aig.world import card, draft, instruments, methods, tradeoffs
from aig.world.bench import GUIDANCE, STEPS, Bench, Measuring, draw, features_of, load
from aig.world.presets import World
from aig.world.quality import frechet, precision_recall, total_variation

BATCH = 40  # samples drawn at once
FIRST_SEED = 50_000  # of the samples without a prompt
P_NAMED = 0.5  # of each attribute in an evaluation prompt
SOLVERS: dict[str, Callable] = {  # made from the shipped scheduler's settings
    "DPM-Solver++ 2M": DPMSolverMultistepScheduler.from_config,
    "UniPC": UniPCMultistepScheduler.from_config,
    "Euler": EulerDiscreteScheduler.from_config,
    "DDIM, equal timesteps": partial(DDIMScheduler.from_config, clip_sample=False),  # knows no Karras noise levels
}
SHIPPED = next(iter(SOLVERS))
LENGTHS = (8, 10, 12, 25, 50)  # steps that solvers are compared at
FINISHED = "finished"
IN_QUESTION = (10, 12, 50)  # are ten or twelve steps as good as fifty?
GUIDANCES = (2.0, GUIDANCE, 7.0)


def run(preset: World, *, assets: Path = ASSETS, samples: int = 10_000, part: str = "") -> Iterator[dict[str, float]]:
    """Measure everything and write ``evaluation.json`` and ``card.md`` into the asset folder, part by part; yields progress.

    part: measure this one of ``PARTS`` alone and only keep it for a later run, so that two processes can share the work; or "finished":
    measure nothing and write what was measured so far. Raises ValueError for an unknown part.
    """
    if part and part not in (*PARTS, FINISHED):
        raise ValueError(f"Unknown part {part!r}; choose one of: {', '.join((*PARTS, FINISHED))}.")
    bench, samples = load(preset, assets=assets), whole_batches(samples)
    folder = bench.folder
    kept = preset.work / "evaluation"
    kept.mkdir(exist_ok=True)
    before = read(folder)["training minutes"] if (folder / "evaluation.json").exists() else {}  # of stages that were trained elsewhere
    result = {"settings": settings(samples), "training minutes": before | card.times(preset)}
    for name in [part] if part in PARTS else PARTS:
        measured, draws = PARTS[name]
        count = () if draws is None else (whole_batches(draws(samples)),)
        path = kept / f"{name.replace(': ', ' ')}-{version(preset, folder, *count)}.json"
        if not path.exists():
            if part == FINISHED:
                continue
            began = time.monotonic()
            figures = yield from measured(bench, *count)
            machine = f"{platform.machine()}, torch {torch.__version__}, diffusers {diffusers.__version__}, {bench.model.facts.precision}"
            figures |= {"minutes": (time.monotonic() - began) / 60, "threads": torch.get_num_threads(), "machine": machine}
            path.write_text(json.dumps(figures))
        result[name] = json.loads(path.read_text())
        if part not in PARTS:
            (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
            (folder / "card.md").write_text(card.render(preset, result))


def read(folder: Path) -> dict:
    """What ``run`` measured of the asset in this folder."""
    return json.loads((folder / "evaluation.json").read_text())


def whole_batches(n: int) -> int:
    """n, or the next number that is a whole number of batches."""
    return -(-n // BATCH) * BATCH


def settings(samples: int) -> dict[str, object]:
    """All that is chosen here and changes a figure."""
    return {
        "samples": samples, "steps": STEPS, "guidance": GUIDANCE, "named": P_NAMED, "first seed": FIRST_SEED,
        "seeds of a tuned model": (methods.SEEDS, methods.FEWER),
        "solvers": list(SOLVERS), "lengths": LENGTHS, "lengths in question": IN_QUESTION, "guidances": GUIDANCES,
    }  # fmt: skip


def version(preset: World, folder: Path, samples: int | None = None) -> str:
    """A name for what is measured and how: all files of the asset, and LoRAs that only the evaluation needs, or, of the base model, on
    so many samples, all but rewards and LoRAs."""
    digests = json.loads((folder / "manifest.json").read_text())
    studied = [path for name in draft.STUDIED for path in sorted((preset.work / "loras").glob(f"{name}-*"))]
    digests |= {f"loras/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in studied}
    measured = {name: digest for name, digest in digests.items() if samples is None or not name.startswith(("loras/", "rewards/"))}
    return hashlib.sha256(json.dumps([settings(samples or 0), measured]).encode()).hexdigest()[:12]


def prompts(bench: Bench, samples: int) -> Measuring:
    """How often the classifier sees what a prompt names, for combinations that no training drawing has."""
    rng = torch.Generator().manual_seed(2_026)
    hits: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for start in range(0, samples, BATCH):
        texts = [unseen_prompt(bench, rng) for _ in range(BATCH)]
        told = bench.model.attributes(draw(bench.model.pipe, texts, range(start, start + BATCH)))
        for row, text in enumerate(texts):
            for name, value in named_attributes(text).items():
                hits[name].append(ATTRIBUTES[name][int(told[name][row].argmax())] == value)
        yield {"step": start + BATCH, "steps": samples}
    return {name: [sum(h) / len(h), len(h)] for name, h in hits.items() if h}


def unseen_prompt(bench: Bench, rng: torch.Generator) -> str:
    """A prompt that names about half of what a held-out drawing shows, such that no training drawing has all of it."""
    trained, held = bench.labels[: bench.preset.drawings], bench.labels[bench.held]
    for _ in range(1_000):
        labels = held[int(torch.randint(len(held), (1,), generator=rng))]
        person = decode(labels)
        chosen = [v != NONE and float(torch.rand((), generator=rng)) < P_NAMED for v in person.values()]
        named = {k: v for (k, v), take in zip(person.items(), chosen, strict=True) if take}
        text = sentence(named, rng, robot=person["style"] == "bottts")
        said = named_attributes(text)  # a sentence cannot name everything: a hat hides the length of the hair
        columns = [i for i, name in enumerate(ATTRIBUTES) if name in said]
        if columns and not (trained[:, columns] == labels[columns]).all(1).any():
            return text
    raise ValueError("all combinations of attributes of the held-out drawings occur in training")


def population(bench: Bench, samples: int) -> Measuring:
    """Without a prompt: every attribute's distribution against the drawings', precision and recall against drawings."""
    features, told = [], []
    for start in range(0, samples, BATCH):
        seeds = range(FIRST_SEED + start, FIRST_SEED + start + BATCH)
        f, p = bench.model.measure(draw(bench.model.pipe, [""] * BATCH, seeds, guidance=1.0))
        features.append(f)
        told.append(p)
        yield {"step": start + BATCH, "steps": samples}
    real = features_of(bench.model, bench.images[:samples])
    variation = {}
    for column, name in enumerate(ATTRIBUTES):
        truth = torch.bincount(torch.as_tensor(bench.labels[:, column]).long(), minlength=len(ATTRIBUTES[name])) / len(bench.labels)
        variation[name] = total_variation(value_shares(torch.cat([p[name] for p in told])), truth)
    precision, recall = precision_recall(real, torch.cat(features))
    return {
        "total variation": variation, "precision": precision, "recall": recall,
        "Fréchet distance": frechet(real, torch.cat(features)), "samples": samples,
    }  # fmt: skip


def solver(bench: Bench, samples: int, name: str) -> Measuring:
    """One of ``SOLVERS`` at all ``LENGTHS``, without guidance."""
    return (yield from fidelity(bench, samples, [(name, steps, 1.0) for steps in LENGTHS]))


def closer(bench: Bench, samples: int) -> Measuring:
    """The shipped solver without guidance at the lengths that are in question."""
    return (yield from fidelity(bench, samples, [(SHIPPED, steps, 1.0) for steps in IN_QUESTION]))


def with_guidance(bench: Bench, samples: int) -> Measuring:
    """The shipped solver under guidance, at and around the default, with the default number of steps and with the most."""
    plan = [(SHIPPED, steps, scale) for scale in GUIDANCES for steps in (STEPS, LENGTHS[-1])]
    return (yield from fidelity(bench, samples, plan))


def fidelity(bench: Bench, samples: int, plan: Sequence[tuple[str, int, float]]) -> Measuring:
    """Fréchet distance to drawings for each (solver, steps, guidance), of the same noise under the same captions of held-out drawings."""
    rng = torch.Generator().manual_seed(7)
    rows = bench.labels[bench.held]
    texts = [caption(decode(rows[i % len(rows)]), rng) for i in range(samples)]
    pipe, table = bench.model.pipe, []
    for name, steps, scale in plan:
        with replaced(pipe, "scheduler", SOLVERS[name](pipe.scheduler.config)):
            batches = (range(i, i + BATCH) for i in range(0, samples, BATCH))
            drawn = [draw(pipe, texts[seeds.start : seeds.stop], seeds, steps=steps, guidance=scale) for seeds in batches]
        distance = frechet(bench.drawn, torch.cat([bench.model.features(images) for images in drawn]))
        table.append({"solver": name, "steps": steps, "guidance": scale, "Fréchet distance": distance})
        yield {"step": len(table), "steps": len(plan)}
    return {"table": table, "samples": samples}


def without_prompt(bench: Bench, tuning: str) -> Measuring:
    """A tuned model on many seeds without a prompt."""
    return (yield from tradeoffs.tuned(bench, tuning, methods.without_prompt(methods.SEEDS)))


def with_prompts(bench: Bench, tuning: str) -> Measuring:
    """A tuned model under prompts, by the methods that the page has."""
    plan = [method for method in methods.compared(bench, tuning) if method.label in methods.PROMPTED]
    return (yield from tradeoffs.tuned(bench, tuning, methods.with_prompts(bench), plan))


def page(bench: Bench) -> Measuring:
    """The page at its defaults: its first seeds under twenty prompts."""
    pictures = replace(methods.with_prompts(bench), name="page", seeds=tuple(Request().seeds))
    return (yield from tradeoffs.at_the_page(bench, Request().tuning, pictures))


# Measuring -> the function that measures it and, if that reads the base model alone, how many samples it draws when so many are asked for
PARTS: dict[str, tuple[Callable[..., Measuring], Callable[[int], int] | None]] = {
    "instruments": (instruments.measure, None),
    "page": (page, None),
    **{f"tuned: {name}": (partial(without_prompt, tuning=name), None) for name in draft.SHIPPED},
    "tuned: last-step": (partial(without_prompt, tuning="last-step"), None),
    "gaps": (lambda bench: tradeoffs.gaps(bench, methods.without_prompt(methods.FEWER)), None),
    **{f"prompted: {name}": (partial(with_prompts, tuning=name), None) for name in ("preference", "fashion")},
    "prompts": (prompts, lambda n: n),
    "population": (population, lambda n: n // 2),
    **{f"solver {name}": (partial(solver, name=name), lambda n: min(n, 400)) for name in SOLVERS},
    "solver on more samples": (closer, lambda n: min(n, 1_000)),
    "solver with guidance": (with_guidance, lambda n: min(n, 400)),
}
