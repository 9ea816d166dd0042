"""Tradeoffs: what tuning on a reward won and lost, for every method that is compared. Parts of stage ``evaluate``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from aig.adapters import blend, fused
from aig.budget import Budget
from aig.fronts import at_reward, between, holm, hypervolume, p_value
from aig.intervals import Estimate
from aig.sampling import Column, sample
from aig.schedules import parse, weights
from aig.world import data, draft, records
from aig.world.bench import GUIDANCE, STEPS, Bench, Part
from aig.world.captions import caption, named_attributes
from aig.world.portraits import ATTRIBUTES, decode
from aig.world.quality import covered
from aig.world.records import Modes, Records

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
POWERS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0)  # exponents of AIG that ends at 1
SIGMOIDS = ("sigmoid_12_0.4", "sigmoid_12_0.6", "sigmoid_12_0.8")
AIG = ("AIG as in the paper", "AIG power", "AIG step", "AIG sigmoid")
OTHERS = ("tuning stopped early", "KL", "LoRA scale", "constant mix", "scheduled LoRA scale")
BACK = "tuned, then base"  # the other half of the switch curves; the first is "AIG step"
COMPARED = ("entropy", "diversity", "held-out", "precision")  # at an equal reward
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)  # of the gain at which families are compared
DEFAULT = "AIG power_2, ending at 1"  # of the page
AT_ONCE = Budget(rows=32)  # as fast as it gets on two cores
GAP_AT = 0.8  # share of the reward gain at which AIG's gain is set against the gap of the switch curves
LEVEL = 0.05  # of a difference that is called sure, after Holm's correction


@dataclass(frozen=True, kw_only=True)
class Method:
    """One family at one strength: a LoRA, its scale at every step, and the share of the model so tuned at every step."""

    family: str
    label: str
    lora: str  # file name stem
    shares: tuple[float, ...] = (1.0,) * STEPS
    scales: tuple[float, ...] = (1.0,) * STEPS


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
    texts = (caption(decode(row), rng, 0.0) for row in bench.labels[bench.held])
    different = tuple(dict.fromkeys(text for text, _ in zip(texts, range(4 * prompts))))[:prompts]
    return Pictures(name="prompts", prompts=different, seeds=tuple(range(2_000, 2_000 + seeds)), guidance=GUIDANCE)


def methods(bench: Bench, tuning: str) -> list[Method]:
    """All that is compared on a tuned model, the base and the model that was tuned without KL first."""
    end = draft.name_of(tuning, 0.0)
    at = partial(Method, lora=end)
    shares = lambda name, **how: weights(parse(name), STEPS, **how)  # noqa: E731
    switch = [(0.0,) * k + (1.0,) * (STEPS - k) for k in range(1, STEPS)]
    found = [at(family="base", label="base", shares=shares("base")), at(family="tuned", label="tuned")]
    if tuning in draft.SHIPPED:
        family = OTHERS[0]
        found += [Method(family=family, label=f"after {n} updates", lora=draft.name_of(tuning, 0.0, n)) for n in bench.preset.checkpoints]
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
    """Label -> the records of each method, sampled where they are not kept yet; yields progress.

    Methods of one LoRA are sampled side by side, as many as have not parted share what they can.
    """
    folder = bench.preset.work / "evaluation" / "records"
    folder.mkdir(parents=True, exist_ok=True)
    places = {method.label: folder / f"{version(bench, method, pictures)}.safetensors" for method in plan}
    todo = [method for method in plan if not places[method.label].exists()]
    yield {"step": len(plan) - len(todo), "steps": len(plan)}
    for group in grouped(todo):
        for method, images in zip(group, drawn(bench, group, pictures)):
            judged(bench, images, pictures).save(places[method.label])
        left = [method for method in plan if not places[method.label].exists()]
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
    """For each method the images (P * S, 3, H, W) in [0, 1]."""
    columns = [Column(name=method.label, weights=method.shares, tuned=denoisers(bench, method)) for method in group]
    found = []
    for prompt in pictures.prompts:
        for i in range(0, len(pictures.seeds), 8):
            seeds = pictures.seeds[i : i + 8]
            settings = {"prompt": prompt, "seeds": seeds, "steps": STEPS, "guidance": pictures.guidance, "budget": AT_ONCE}
            found.append(sample(bench.model.pipe, columns, **settings).images)  # (methods, seeds, 3, H, W)
    return list(torch.cat(found, 1))


def denoisers(bench: Bench, method: Method) -> list[torch.nn.Module]:
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


def version(bench: Bench, method: Method, pictures: Pictures) -> str:
    """A name for all that a method's records follow from; the base does not follow from its LoRA."""
    lora = lora_path(bench, method.lora) if any(method.shares) else None
    files = {name: digest for name, digest in bench.manifest.items() if not name.startswith("loras/")}
    parts = [
        [files.get(name) for name in sorted(files)],
        lora and hashlib.sha256(lora.read_bytes()).hexdigest(),
        method.shares, method.scales, pictures.prompts, pictures.seeds, pictures.guidance, STEPS,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def by_modes(bench: Bench, reward: str) -> Modes:
    """The part of a reward (B,) that attributes explain, from their probabilities: a linear fit over the drawings' rewards."""
    images, labels = bench.images[:5_000], torch.as_tensor(bench.labels[:5_000]).long()
    with torch.no_grad():
        worth = torch.cat([bench.model.rewards[reward](batch, [""] * len(batch)).cpu() for batch in data.batches(images)])
    shown = torch.cat([torch.nn.functional.one_hot(labels[:, i], len(v)) for i, v in enumerate(ATTRIBUTES.values())], 1).double()
    fit = torch.linalg.lstsq(shown, worth.double().unsqueeze(1), driver="gelsd").solution
    return lambda told: (torch.cat([told[name] for name in ATTRIBUTES], 1).double() @ fit).squeeze(1)


def tuned(bench: Bench, tuning: str, pictures: Pictures, plan: Sequence[Method] | None = None) -> Part:
    """What tuning did, by every method: scores, hypervolumes, differences at equal rewards, switch curves."""
    plan = methods(bench, tuning) if plan is None else plan
    reward = proxy(tuning)
    kept = yield from measured(bench, plan, pictures)
    modes = by_modes(bench, reward)
    found = {label: records.scores(of, reward, modes, pictures.open_attributes) for label, of in kept.items()}
    families = members(plan)
    return {
        "pictures": {"prompts": pictures.prompts, "seeds": len(pictures.seeds), "guidance": pictures.guidance},
        "reward": reward,
        "table": [{"method": label, **{name: shown(score) for name, score in row.items()}} for label, row in found.items()],
        "families": families,
        "hypervolumes": hypervolumes(found, families, reward),
        "at equal reward": at_equal_rewards(found, families, reward),
        "decided": decided(found, reward),
        "last shares": {method.label: method.shares[-1] for method in plan if method.family in AIG},
    }


def proxy(tuning: str) -> str:
    """The reward that a tuned model is judged by: the one it was tuned on most."""
    rewards = draft.TUNINGS[tuning].rewards
    return max(rewards, key=rewards.__getitem__)


def members(plan: Sequence[Method]) -> dict[str, list[str]]:
    """Family -> the labels of its strengths, between the base and the model that was tuned without KL, which belong to each."""
    families = {method.family for method in plan} & {*AIG, *OTHERS}
    return {f: ["base", *(m.label for m in plan if m.family == f), "tuned"] for f in (*AIG, *OTHERS) if f in families}


def shown(score: Estimate) -> dict[str, float]:
    interval = score.interval()
    return {"value": interval.value, "low": interval.low, "high": interval.high}


Scores = Mapping[str, Mapping[str, Estimate]]  # label -> score -> estimate


def hypervolumes(found: Scores, families: Mapping[str, Sequence[str]], reward: str) -> list[dict]:
    """What each family's front covers of the square from tuned to base in entropy and diversity, from base to tuned in the reward."""
    rows = []
    for score in ("entropy", "diversity"):
        ends = {name: (found["base"][name].value, found["tuned"][name].value) for name in (reward, score)}
        unit = lambda row, name, ends=ends: (row[name].value - ends[name][0]) / (ends[name][1] - ends[name][0])  # noqa: E731
        for family, labels in families.items():
            points = [(unit(found[label], reward), 1 - unit(found[label], score)) for label in labels]
            rows.append({"score": score, "family": family, "hypervolume": hypervolume([(min(x, 1), min(y, 1)) for x, y in points], (0, 0))})
    return rows


def at_equal_rewards(found: Scores, families: Mapping[str, Sequence[str]], reward: str) -> list[dict]:
    """What each family of AIG has more than every other method's at shares of the reward gain, with intervals that are paired by
    seed, and p-values by Holm's correction over all of these comparisons.

    Both lie on straight lines between their strengths. The interval is the jackknife's of the whole difference: the reward, the lines
    and all.
    """
    base, end = found["base"][reward], found["tuned"][reward]
    line = lambda family, score: [(found[label][reward], found[label][score]) for label in families[family]]  # noqa: E731
    rows, p_values = [], []
    for mine in (family for family in AIG if family in families):
        for other in (family for family in OTHERS if family in families):
            for score in COMPARED:
                for share in SHARES:
                    if (at := between(base, end, share)).value > max(found[label][reward].value for label in families[mine][:-1]):
                        continue  # beyond the family's own strengths there is but the line to the tuned model
                    more = at_reward(at, line(mine, score)) - at_reward(at, line(other, score))
                    rows.append({"family": mine, "other": other, "score": score, "share": share} | shown(more))
                    p_values.append(p_value(more))
    return [row | {"p": p} for row, p in zip(rows, holm(p_values))]


def decided(found: Scores, reward: str) -> dict[str, object]:
    """The switch curves: what is left of the reward's gain, and is back of what was lost, when the base runs the first k of T steps, and
    the gap between the steps at which the two are decided, as a share of the run: 1 if all modes are settled before any reward is.
    """
    curves: dict[str, list] = {}
    for direction, form in (("base first", "base for {}, then tuned"), ("tuned first", "tuned for {}, then base")):
        ends = ("tuned", "base") if direction == "base first" else ("base", "tuned")
        labels = [ends[0], *(form.format(k) for k in range(1, STEPS)), ends[1]]
        if all(label in found for label in labels):
            curves[direction] = [{"k": k} | {n: shown(s) for n, s in found[label].items()} for k, label in enumerate(labels)]
    if "base first" not in curves:
        return {}
    row = found["base"], found["tuned"]
    share = lambda label, score, to, back: (found[label][score].value - back) / (to - back)  # noqa: E731
    labels = [f"base for {k}, then tuned" for k in range(1, STEPS)]
    won = [share(label, reward, row[1][reward].value, row[0][reward].value) for label in labels]
    gaps = {}
    for score in ("entropy", "diversity"):
        back = [share(label, score, row[0][score].value, row[1][score].value) for label in labels]
        gaps[score] = sum(w + b - 1 for w, b in zip(won, back)) / STEPS
    return {"curves": curves, "gap": gaps}


def at_the_page(bench: Bench, tuning: str, pictures: Pictures) -> Part:
    """What a visitor sees at the page's defaults, prompt by prompt: what AIG and half of the LoRA keep of diversity and reward."""
    labels = ("base", "tuned", DEFAULT, "LoRA scale 0.5")
    plan = [method for method in methods(bench, tuning) if method.label in labels]
    kept, reward, rows = (yield from measured(bench, plan, pictures)), proxy(tuning), []
    modes, n = by_modes(bench, reward), len(pictures.seeds)
    for i, (prompt, names) in enumerate(zip(pictures.prompts, pictures.open_attributes)):
        cut = {label: of.some(slice(i * n, (i + 1) * n)) for label, of in kept.items()}
        found = {label: records.scores(of, reward, modes, [names]) for label, of in cut.items()}
        row = {"prompt": prompt}
        for label in labels[2:]:
            for name, start, end in (("reward", "base", "tuned"), ("diversity", "tuned", "base"), ("entropy", "tuned", "base")):
                score = reward if name == "reward" else name
                ends = found[start][score].value, found[end][score].value
                row[f"{label}: {name}"] = (found[label][score].value - ends[0]) / (ends[1] - ends[0]) if ends[0] != ends[1] else None
        rows.append(row)
    numbers = [name for name in rows[0] if name != "prompt"]
    return {"prompts": rows, "medians": {name: median([row[name] for row in rows if row[name] is not None]) for name in numbers}}


def gaps(bench: Bench, pictures: Pictures) -> Part:
    """The prediction that AIG gains where the reward is decided after the modes: gap of the switch curves and gain over LoRA scaling, for
    every tuned model, mixtures included."""
    rows = []
    for tuning in draft.TUNINGS:
        keep = {AIG[1], AIG[2], "LoRA scale", "base", "tuned"}
        plan = [method for method in methods(bench, tuning) if method.family in keep]
        found = yield from tuned(bench, tuning, pictures, plan)
        more = {
            row["score"]: {name: row[name] for name in ("value", "low", "high")}
            for row in found["at equal reward"]
            if row["family"] == AIG[1] and row["other"] == "LoRA scale" and row["share"] == GAP_AT
        }
        rows.append({"tuned": tuning, "gap": found["decided"]["gap"], "gain": more})
    return {"rows": rows, "share": GAP_AT}
