"""Stage ``evaluate``: measure the shipped asset on held-out drawings and fresh samples; the card is written from the result.

Each part is a generator that yields progress and returns its figures; finished parts are kept in ``work/evaluation`` for
exactly the files that they measure, so a killed evaluation resumes, and new LoRAs do not make the base model's figures old.
All sampling goes through the stock pipeline call, but for AIG itself.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from aig import models
from aig.adapters import fused
from aig.diversity import attribute_entropy, distances, mean_pairwise, value_shares
from aig.sampling import Column, sample
from aig.schedules import parse, weights
from aig.world import autoencoder, card, data, draft, preference
from aig.world.captions import caption, named_attributes, sentence
from aig.world.portraits import ATTRIBUTES, NONE, decode
from aig.world.presets import Preset
from aig.world.quality import covered, frechet, precision_recall, total_variation
from aig.world.ruler import unit

BATCH, STEPS, GUIDANCE = 40, 12, 4.0
FIRST_SEED = 50_000  # of the samples without a prompt
P_NAMED = 0.5  # of each attribute in an evaluation prompt
TUNED_SEEDS = tuple(range(1_000, 1_064))  # the same 64 people, without a prompt, for every tuned model
SCALES = (0.25, 0.5, 0.75, 2.0, 4.0)  # of the LoRA that was tuned without KL; above 1 is what more tuning would lead to
SOLVERS: dict[str, Callable] = {  # made from the shipped scheduler's settings
    "DPM-Solver++ 2M": DPMSolverMultistepScheduler.from_config,
    "UniPC": UniPCMultistepScheduler.from_config,
    "Euler": EulerDiscreteScheduler.from_config,
    "DDIM, equal timesteps": partial(DDIMScheduler.from_config, clip_sample=False),  # knows no Karras noise levels
}
LENGTHS = (8, 10, 12, 25, 50)  # steps that solvers are compared at
Part = Generator[dict[str, float], None, dict]


@dataclass(kw_only=True)
class Bench:
    """What every part measures with."""

    model: models.Model
    folder: Path  # of the asset
    images: np.ndarray  # all drawings, the held-out ones last
    labels: np.ndarray
    preset: Preset

    @property
    def held(self) -> slice:
        return slice(self.preset.drawings, None)

    @cached_property
    def drawn(self) -> Tensor:
        """Features (N, D) of drawings, to compare samples with."""
        return features_of(self, self.images[:5_000])


def run(preset: Preset, *, assets: Path = models.ASSETS, samples: int = 10_000) -> Iterator[dict[str, float]]:
    """Measure everything and write ``evaluation.json`` and ``card.md`` into the asset folder, part by part; yields progress."""
    measured, samples = bench(preset, assets=assets), whole_batches(samples)
    folder = measured.folder
    kept = preset.work / "evaluation"
    kept.mkdir(exist_ok=True)
    result = {
        "settings": {"samples": samples, "steps": STEPS, "guidance": GUIDANCE, "named": P_NAMED, "seeds": len(TUNED_SEEDS)},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, diffusers {diffusers.__version__}",
        "training minutes": card.times(preset),
    }
    for name, (part, draws) in PARTS.items():
        count = () if draws is None else (whole_batches(draws(samples)),)
        path = kept / f"{name}-{version(folder, *count)}.json"
        if not path.exists():
            began = time.monotonic()
            figures = yield from part(measured, *count)
            path.write_text(json.dumps(figures | {"minutes": (time.monotonic() - began) / 60}))
        result[name] = json.loads(path.read_text())
        (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
        (folder / "card.md").write_text(card.render(preset, result))


def read(folder: Path) -> dict:
    """What ``run`` measured of the asset in this folder."""
    return json.loads((folder / "evaluation.json").read_text())


def whole_batches(n: int) -> int:
    """n, or the next number that is a whole number of batches."""
    return -(-n // BATCH) * BATCH


def bench(preset: Preset, *, assets: Path = models.ASSETS) -> Bench:
    """The shipped asset and the drawings of a preset."""
    images, labels = data.load(preset)
    model = models.load("portraits", assets=assets)
    return Bench(model=model, folder=assets / "portraits", images=images, labels=labels, preset=preset)


def version(folder: Path, samples: int | None = None) -> str:
    """A name for what is measured: all files of the asset or, of the base model, on so many samples, all but rewards and LoRAs."""
    digests = json.loads((folder / "manifest.json").read_text())
    measured = {name: digest for name, digest in digests.items() if samples is None or not name.startswith(("loras/", "rewards/"))}
    return hashlib.sha256(json.dumps([samples, measured]).encode()).hexdigest()[:12]


def instruments(bench: Bench) -> Part:
    """The autoencoder, the classifier and the rewards, on held-out drawings."""
    images, labels = bench.images[bench.held], bench.labels[bench.held]
    yield {"step": 0, "steps": 3}
    psnr = autoencoder.evaluate(bench.model.pipe.vae, images)
    yield {"step": 1, "steps": 3}
    probabilities = [bench.model.attributes(unit(images[i : i + 250])) for i in range(0, len(images), 250)]
    right = {}
    for column, name in enumerate(ATTRIBUTES):
        told = torch.cat([p[name] for p in probabilities]).argmax(1)
        right[name] = float((told == torch.as_tensor(labels[:, column]).long()).float().mean())
    yield {"step": 2, "steps": 3}
    pairs = {n: preference.pair_accuracy(bench.model.rewards[n], bench.preset, n) for n in preference.POPULATIONS}
    steady = {n: preference.robustness(r, images[:64]) for n, r in bench.model.rewards.items()}
    return {
        "autoencoder PSNR (dB)": psnr, "ruler accuracy": right, "reward pair accuracy and ceiling": pairs,
        "rise under attack (standard deviations)": steady,
    }  # fmt: skip


def prompts(bench: Bench, samples: int) -> Part:
    """How often the classifier sees what a prompt names, for combinations that no training drawing has."""
    rng = torch.Generator().manual_seed(2_026)
    hits: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for start in range(0, samples, BATCH):
        texts = [unseen_prompt(bench, rng) for _ in range(BATCH)]
        told = bench.model.attributes(draw(bench.model, texts, range(start, start + BATCH)))
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


def draw(model: models.Model, texts: list[str], seeds, *, steps: int = STEPS, guidance: float = GUIDANCE) -> Tensor:
    """One image a prompt, (B, 3, H, W) in [0, 1], by the stock pipeline call."""
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    return model.pipe(texts, num_inference_steps=steps, guidance_scale=guidance, generator=noise, output_type="pt").images


def population(bench: Bench, samples: int) -> Part:
    """Without a prompt: every attribute's distribution against the drawings', precision and recall against drawings."""
    features, told = [], []
    for start in range(0, samples, BATCH):
        f, p = bench.model.measure(draw(bench.model, [""] * BATCH, range(FIRST_SEED + start, FIRST_SEED + start + BATCH), guidance=1.0))
        features.append(f)
        told.append(p)
        yield {"step": start + BATCH, "steps": samples}
    real = features_of(bench, bench.images[:samples])
    variation = {}
    for column, name in enumerate(ATTRIBUTES):
        truth = torch.bincount(torch.as_tensor(bench.labels[:, column]).long(), minlength=len(ATTRIBUTES[name])) / len(bench.labels)
        variation[name] = total_variation(value_shares(torch.cat([p[name] for p in told])), truth)
    precision, recall = precision_recall(real, torch.cat(features))
    return {
        "total variation": variation, "precision": precision, "recall": recall,
        "Fréchet distance": frechet(real, torch.cat(features)), "samples": samples,
    }  # fmt: skip


def features_of(bench: Bench, images: np.ndarray) -> Tensor:
    """Features (N, D) of drawings (N, H, W, 3) uint8."""
    return torch.cat([bench.model.features(unit(images[i : i + 250])) for i in range(0, len(images), 250)])


def solver(bench: Bench, samples: int, name: str) -> Part:
    """One of ``SOLVERS`` at all ``LENGTHS``, without guidance."""
    return (yield from fidelity(bench, samples, [(name, steps, 1.0) for steps in LENGTHS]))


def with_guidance(bench: Bench, samples: int) -> Part:
    """The shipped solver with guidance, at the default number of steps and at the most."""
    name, lengths = next(iter(SOLVERS)), (STEPS, LENGTHS[-1])
    return (yield from fidelity(bench, samples, [(name, steps, scale) for scale in (2.0, 4.0, 7.0) for steps in lengths]))


def fidelity(bench: Bench, samples: int, plan: Sequence[tuple[str, int, float]]) -> Part:
    """Fréchet distance to drawings for each (solver, steps, guidance), of the same noise under the same captions of held-out drawings."""
    rng = torch.Generator().manual_seed(7)
    rows = bench.labels[bench.held]
    texts = [caption(decode(rows[i % len(rows)]), rng) for i in range(samples)]
    own, table = bench.model.pipe.scheduler, []
    try:
        for name, steps, scale in plan:
            bench.model.pipe.scheduler = SOLVERS[name](own.config)
            parts = []
            for i in range(0, samples, BATCH):
                drawn = draw(bench.model, texts[i : i + BATCH], range(i, i + BATCH), steps=steps, guidance=scale)
                parts.append(bench.model.features(drawn))
            distance = frechet(bench.drawn, torch.cat(parts))
            table.append({"solver": name, "steps": steps, "guidance": scale, "Fréchet distance": distance})
            yield {"step": len(table), "steps": len(plan)}
    finally:
        bench.model.pipe.scheduler = own
    return {"table": table, "samples": samples}


def tuned(bench: Bench, reward: str) -> Part:
    """What tuning on a reward did: every KL coefficient and checkpoint, LoRA scales and AIG on the run without KL."""
    modes, table, plan = by_modes(bench, reward), [], methods(bench, reward)
    for label, (denoiser, schedule) in plan.items():
        table.append({"method": label, **measure(bench, reward, modes, pictures(bench, denoiser(), schedule, TUNED_SEEDS))})
        yield {"step": len(table), "steps": len(plan)}
    return {"table": table}


def methods(bench: Bench, reward: str) -> dict[str, tuple[Callable[[], torch.nn.Module], str]]:
    """What is compared: label -> the tuned denoiser, made when called, and the schedule that mixes it with the base."""
    model, folder = bench.model, bench.folder / "loras"
    twin = lambda kl, scale=1.0: partial(model.twin, reward, kl, scale)  # noqa: E731
    last = twin(0.0)
    checkpoints = {n: folder / f"{draft.name_of(reward, 0.0, n)}.safetensors" for n in bench.preset.checkpoints}
    found: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {"base": (last, "base")}
    found |= {f"after {n} updates": (partial(fused, model.pipe.unet, path), "draft") for n, path in checkpoints.items()}
    found |= {f"KL {kl:g}": (twin(kl), "draft") for kl in model.facts.tunings[reward]}
    found |= {f"LoRA scale {scale:g}": (twin(0.0, scale), "draft") for scale in SCALES}
    found |= {f"AIG {name}": (last, name) for name in ("linear", "power_2", "power_4", "step_0.6")}
    found |= {f"constant {w:g}": (last, f"constant_{w:g}") for w in (0.25, 0.5, 0.75)}
    return found


def pictures(bench: Bench, denoiser: torch.nn.Module, schedule: str, seeds: tuple[int, ...]) -> Tensor:
    """One image (N, 3, H, W) in [0, 1] a seed, without a prompt."""
    column = Column(name="measured", weights=weights(parse(schedule), STEPS))
    batches = [seeds[i : i + 16] for i in range(0, len(seeds), 16)]
    runs = [sample(bench.model.pipe, [column], prompt="", seeds=batch, steps=STEPS, guidance=1.0, tuned=denoiser) for batch in batches]
    return torch.cat([run.images[0] for run in runs])


def by_modes(bench: Bench, reward: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """The part of a reward (B,) that attributes explain, from their probabilities: a linear fit over the drawings' rewards."""
    images, labels = bench.images[:5_000], torch.as_tensor(bench.labels[:5_000]).long()
    worth = torch.cat([rewarded(bench, reward, unit(images[i : i + 250])) for i in range(0, len(images), 250)])
    shown = torch.cat([torch.nn.functional.one_hot(labels[:, i], len(v)) for i, v in enumerate(ATTRIBUTES.values())], 1).double()
    fit = torch.linalg.lstsq(shown, worth.double().unsqueeze(1), driver="gelsd").solution
    return lambda told: (torch.cat([told[name] for name in ATTRIBUTES], 1).double() @ fit).squeeze(1)


@torch.no_grad()
def rewarded(bench: Bench, reward: str, pictures: Tensor) -> Tensor:
    """Rewards (B,) of pictures (B, 3, H, W) in [0, 1] without a prompt."""
    return bench.model.rewards[reward](pictures, [""] * len(pictures)).float().cpu()


def measure(bench: Bench, reward: str, modes: Callable, pictures: Tensor) -> dict[str, float]:
    """Mean rewards, diversity, attribute entropy and fidelity of pictures that were drawn without a prompt."""
    features, told = bench.model.measure(pictures)
    proxy, explained = rewarded(bench, reward, pictures), modes(told).float()
    entropies = {name: float(attribute_entropy(p)) for name, p in told.items()}
    return {
        reward: float(proxy.mean()),
        "by modes": float(explained.mean()),
        "within modes": float((proxy - explained).mean()),
        "held-out": float(rewarded(bench, "held-out", pictures).mean()),
        "diversity": float(mean_pairwise(distances(features))),
        "entropy": sum(entropies.values()) / len(entropies),
        "style entropy": entropies["style"],
        "confidence": float(torch.stack([p.amax(1).mean() for p in told.values()]).mean()),
        "precision": covered(features, bench.drawn),
    }


# Part -> the function that measures it and, if that reads the base model alone, how many samples it draws when so many are asked for
PARTS: dict[str, tuple[Callable[..., Part], Callable[[int], int] | None]] = {
    "instruments": (instruments, None),
    "tuned on preference": (partial(tuned, reward="preference"), None),
    "tuned on vivid": (partial(tuned, reward="vivid"), None),
    "prompts": (prompts, lambda n: n),
    "population": (population, lambda n: n // 2),
    **{f"solver {name}": (partial(solver, name=name), lambda n: min(n, 400)) for name in SOLVERS},
    "solver with guidance": (with_guidance, lambda n: min(n, 400)),
}
