"""The methods that are compared on a tuned model, each family at several strengths, and the pictures that they are measured on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aig.method import schedules
from aig.method.adapters import blend, fused
from aig.method.budget import Budget
from aig.method.frames import Settings
from aig.method.sampling import Trajectory, final, sample
from aig.portraits.captions import caption, named_attributes
from aig.portraits.population import ATTRIBUTES, decode
from aig.world import draft, records
from aig.world.bench import GUIDANCE, STEPS, Bench
from aig.world.quality import covered
from aig.world.records import Records

SEEDS, FEWER = 256, 128  # without a prompt, of a tuned model and of one that is studied for the gap of its curves
PROMPTED = (  # methods that are measured under prompts too
    "base", "tuned", "KL 0.1", "KL 0.3", "KL 1", "LoRA scale 0.25", "LoRA scale 0.5", "LoRA scale 0.75", "LoRA scale 0.9", "constant 0.5",
    "constant 0.75", "AIG power_1, ending at 1", "AIG power_2, ending at 1", "AIG power_4, ending at 1", "base for 5, then tuned",
    "base for 6, then tuned", "base for 7, then tuned", "base for 8, then tuned",
)  # fmt: skip
REWARDS = ("preference", "fashion", "vivid", "held-out")  # of every picture
SCALES = (0.25, 0.5, 0.75, 0.9)  # of the LoRA that was tuned without KL
BEYOND = (2.0, 4.0)  # what more tuning would lead to
MIXES = (0.25, 0.5, 0.75, 0.9)  # constant shares of the tuned model
OPEN = ("linear", "power_2", "power_4", "step_0.6")  # AIG as in the paper, whose last share is below 1
POWERS = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)  # exponents of AIG that ends at 1
SIGMOIDS = ("sigmoid_12_0.4", "sigmoid_12_0.6", "sigmoid_12_0.8")
AIG = ("AIG as in the paper", "AIG power", "AIG step", "AIG sigmoid")
OTHERS = ("tuning stopped early", "KL", "LoRA scale", "constant mix", "scheduled LoRA scale")
BACK = "tuned, then base"  # the other half of the switch curves; the first is "AIG step"
P_MENTIONED = 0.3  # of each attribute in a prompt
DEFAULT = "AIG power_2, ending at 1"  # of the page
AT_ONCE = Budget(rows=32)  # as fast as it gets on two cores


@dataclass(frozen=True, kw_only=True)
class Method:
    """One family at one strength: a LoRA, its scale at every step, and the share of the model so tuned at every step."""

    family: str
    label: str
    lora: str  # file name stem
    shares: tuple[float, ...] = field(default_factory=lambda: (1.0,) * STEPS)
    scales: tuple[float, ...] = field(default_factory=lambda: (1.0,) * STEPS)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A set of pictures to measure methods on: the same seeds under every prompt."""

    name: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    guidance: float

    @property
    def open_attributes(self) -> list[list[str]]:
        """For each prompt the attributes that it leaves open."""
        return [[name for name in ATTRIBUTES if name not in named_attributes(prompt)] for prompt in self.prompts]


def without_prompt(seeds: int) -> Pictures:
    """The same people for every tuned model."""
    return Pictures(name="no prompt", prompts=("",), seeds=tuple(range(1_000, 1_000 + seeds)), guidance=1.0)


def with_prompts(bench: Bench, prompts: int = 20, seeds: int = 32) -> Pictures:
    """Captions of the first held-out drawings, each naming about a third of what they show."""
    rng = torch.Generator().manual_seed(20)
    texts = (caption(decode(row), rng, P_MENTIONED) for row in bench.labels[bench.held])
    different = tuple(dict.fromkeys(text for text, _ in zip(texts, range(4 * prompts))))[:prompts]
    return Pictures(name="prompts", prompts=different, seeds=tuple(range(2_000, 2_000 + seeds)), guidance=GUIDANCE)


def compared(bench: Bench, tuning: str) -> list[Method]:
    """All that is compared on a tuned model, the base and the model that was tuned without KL first."""
    end = draft.name_of(tuning, 0.0)
    at = partial(Method, lora=end)
    shares = lambda name, **how: schedules.shares(name, STEPS, **how)  # noqa: E731
    switch = [(0.0,) * k + (1.0,) * (STEPS - k) for k in range(1, STEPS)]
    found = [at(family="base", label="base", shares=shares("base")), at(family="tuned", label="tuned")]
    if tuning in draft.SHIPPED:
        family = OTHERS[0]
        found += [
            Method(family=family, label=f"after {n} updates", lora=draft.name_of(tuning, 0.0, n)) for n in bench.preset.updates(tuning)[:-1]
        ]
        found += [Method(family="KL", label=f"KL {kl:g}", lora=draft.name_of(tuning, kl)) for kl in bench.preset.kl[1:]]
        found += [at(family="beyond", label=f"LoRA scale {a:g}", scales=(a,) * STEPS) for a in BEYOND]
    found += [at(family="LoRA scale", label=f"LoRA scale {a:g}", scales=(a,) * STEPS) for a in SCALES]
    found += [at(family="constant mix", label=f"constant {w:g}", shares=(w,) * STEPS) for w in MIXES]
    for p in (1.0, 2.0, 4.0):
        scales = shares(f"power_{p:g}", closed=True)
        on = tuple(float(a > 0) for a in scales)
        found.append(at(family="scheduled LoRA scale", label=f"scheduled LoRA scale power_{p:g}", shares=on, scales=scales))
    found += [at(family=AIG[0], label=f"AIG {name}", shares=shares(name)) for name in OPEN]
    found += [at(family=AIG[1], label=f"AIG power_{p:g}, ending at 1", shares=shares(f"power_{p:g}", closed=True)) for p in POWERS]
    found += [at(family=AIG[2], label=f"base for {k}, then tuned", shares=g) for k, g in enumerate(switch, 1)]
    found += [at(family=AIG[3], label=f"AIG {name}, ending at 1", shares=shares(name, closed=True)) for name in SIGMOIDS]
    found += [at(family=BACK, label=f"tuned for {k}, then base", shares=tuple(1 - x for x in g)) for k, g in enumerate(switch, 1)]
    return found


def measured(bench: Bench, plan: Sequence[Method], pictures: Pictures) -> Generator[dict[str, float], None, dict[str, Records]]:
    """Label -> the records of each method, sampled and judged where they are not kept yet; yields progress.

    Pictures are kept as well, by what they follow from: new rewards or a new classifier judge the same ones.
    """
    folder = bench.preset.work / "evaluation" / "records"
    folder.mkdir(parents=True, exist_ok=True)
    places = {method.label: folder / f"{version(bench, method, pictures, judged=True)}.safetensors" for method in plan}
    left = [method for method in plan if not places[method.label].exists()]
    yield {"step": len(plan) - len(left), "steps": len(plan)}
    for group in grouped(left):
        for method, images in zip(group, drawn(bench, group, pictures)):
            judged(bench, images, pictures).save(places[method.label])
            left.remove(method)
        yield {"step": len(plan) - len(left), "steps": len(plan)}
    return {label: records.load(path) for label, path in places.items()}


def grouped(plan: Sequence[Method], most: int = 12) -> Iterator[list[Method]]:
    """Methods of one family and LoRA together, which share the most, up to so many."""
    families: dict[tuple[str, str, bool], list[Method]] = {}
    for method in plan:
        families.setdefault((method.family, method.lora, len(set(method.scales)) > 1), []).append(method)
    for group in families.values():
        yield from (group[i : i + most] for i in range(0, len(group), most))


def drawn(bench: Bench, group: Sequence[Method], pictures: Pictures) -> list[Tensor]:
    """For each method the images (P * S, 3, H, W) in [0, 1], in 256 levels as image files have them, sampled where they are not kept."""
    folder = bench.preset.work / "evaluation" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    places = {method: folder / f"{version(bench, method, pictures)}.safetensors" for method in group}
    left = [method for method in group if not places[method].exists()]
    if left:
        for method, images in zip(left, sampled(bench, left, pictures)):
            save_file({"images": images.mul(255).round().byte()}, part := places[method].with_suffix(".part"))
            part.replace(places[method])
    return [load_file(path)["images"] / 255 for path in places.values()]


def sampled(bench: Bench, group: Sequence[Method], pictures: Pictures) -> Tensor:
    """Images (methods, P * S, 3, H, W) in [0, 1], sampled side by side: as many as have not parted share what they can."""
    trajectories = [Trajectory(name=method.label, shares=method.shares, tuned=denoisers(bench, method)) for method in group]
    found = []
    for prompt in pictures.prompts:
        for i in range(0, len(pictures.seeds), 8):
            seeds = pictures.seeds[i : i + 8]
            settings = Settings(prompt=prompt, seeds=seeds, steps=STEPS, guidance=pictures.guidance, budget=AT_ONCE)
            found.append(final(sample(bench.model.pipe, trajectories, settings)).images)
    return torch.cat(found, 1)


def denoisers(bench: Bench, method: Method) -> list[Callable]:
    """The tuned denoiser at each step."""
    path = lora_path(bench, method.lora)
    if len(set(method.scales)) == 1:
        return [tuned_at(bench.model.pipe.unet, path, method.scales[0])] * STEPS
    at = blend(bench.model.pipe.unet, tuned_at(bench.model.pipe.unet, path, 1.0))
    return [at(scale) for scale in method.scales]


@lru_cache(maxsize=12)
def tuned_at(unet: torch.nn.Module, path: Path, scale: float) -> torch.nn.Module:
    return fused(unet, path, scale)


def lora_path(bench: Bench, stem: str) -> Path:
    """The file of a LoRA, shipped or made for the evaluation alone."""
    shipped = bench.folder / "loras" / f"{stem}.safetensors"
    return shipped if shipped.exists() else bench.preset.work / "loras" / shipped.name


@torch.no_grad()
def judged(bench: Bench, images: Tensor, pictures: Pictures) -> Records:
    """What is kept of the images (P * S, 3, H, W) of a method."""
    features, told = bench.model.measure(images)
    prompts = [prompt for prompt in pictures.prompts for _ in pictures.seeds]
    rewards = {name: bench.model.rewards[name](images, prompts).float().cpu() for name in REWARDS}
    return Records(rewards=rewards, features=features, told=told, covered=covered(features, bench.finished))


def version(bench: Bench, method: Method, pictures: Pictures, *, judged: bool = False) -> str:
    """A name for all that a method's pictures follow from, and their records if ``judged``; the base does not follow from its LoRA."""
    lora = lora_path(bench, method.lora) if any(method.shares) else None
    judges = () if judged else ("rewards/", "ruler.")
    files = {name: digest for name, digest in bench.manifest.items() if not name.startswith(("loras/", *judges))}
    parts = [
        sorted(files.items()),
        lora and hashlib.sha256(lora.read_bytes()).hexdigest(),
        method.shares, method.scales, pictures.prompts, pictures.seeds, pictures.guidance, STEPS,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
