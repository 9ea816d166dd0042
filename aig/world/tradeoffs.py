"""Tradeoffs: what tuning on a reward won and lost, for every method that is compared. Parts of stage ``evaluate``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import torch

from aig.measures.fronts import at_reward, between, holm, hypervolume, p_value
from aig.measures.intervals import Estimate
from aig.portraits.population import ATTRIBUTES
from aig.world import data, draft, records
from aig.world.bench import STEPS, Bench, Measuring
from aig.world.methods import AIG, DEFAULT, OTHERS, Method, Pictures, compared, measured
from aig.world.records import Modes

COMPARED = ("entropy", "diversity", "held-out", "precision")  # at an equal reward
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)  # of the gain at which families are compared
GAP_AT = 0.8  # share of the reward gain at which AIG's gain is set against the gap of the switch curves
LEVEL = 0.05  # of a difference that is called sure, after Holm's correction


def by_modes(bench: Bench, reward: str) -> Modes:
    """The part of a reward (B,) that attributes explain, from their probabilities: a linear fit over the drawings' rewards."""
    images, labels = bench.images[:5_000], torch.as_tensor(bench.labels[:5_000]).long()
    with torch.no_grad():
        worth = torch.cat([bench.model.rewards[reward](batch, [""] * len(batch)).cpu() for batch in data.batches(images)])
    shown = torch.cat([torch.nn.functional.one_hot(labels[:, i], len(v)) for i, v in enumerate(ATTRIBUTES.values())], 1).double()
    fit = torch.linalg.lstsq(shown, worth.double().unsqueeze(1), driver="gelsd").solution
    return lambda told: (torch.cat([told[name] for name in ATTRIBUTES], 1).double() @ fit).squeeze(1)


def tuned(bench: Bench, tuning: str, pictures: Pictures, plan: Sequence[Method] | None = None) -> Measuring:
    """What tuning did, by every method: scores, hypervolumes, differences at equal rewards, switch curves."""
    plan = compared(bench, tuning) if plan is None else plan
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
    rewards = draft.OBJECTIVES[tuning].rewards
    return max(rewards, key=rewards.__getitem__)


def members(plan: Sequence[Method]) -> dict[str, list[str]]:
    """Family -> the labels of its strengths, between the base and the model that was tuned without KL, which belong to each."""
    families = {method.family for method in plan} & {*AIG, *OTHERS}
    return {f: ["base", *(m.label for m in plan if m.family == f), "tuned"] for f in (*AIG, *OTHERS) if f in families}


def shown(score: Estimate) -> dict[str, float]:
    interval = score.interval()
    return {"value": interval.value, "low": interval.low, "high": interval.high}


Scores = Mapping[str, Mapping[str, Estimate]]  # label -> score -> estimate


def way(found: Scores, label: str, score: str) -> float:
    """How far a method's score is from the base's (0) to the tuned model's (1); NaN if these are the same."""
    base, end = found["base"][score].value, found["tuned"][score].value
    return (found[label][score].value - base) / (end - base) if end != base else math.nan


def hypervolumes(found: Scores, families: Mapping[str, Sequence[str]], reward: str) -> list[dict]:
    """What each family's front covers of the square from tuned to base in entropy and diversity, from base to tuned in the reward."""
    rows = []
    for score in ("entropy", "diversity"):
        for family, labels in families.items():
            points = [(way(found, label, reward), 1 - way(found, label, score)) for label in labels]
            inside = [(min(x, 1), min(y, 1)) for x, y in points if not math.isnan(x + y)]
            rows.append({"score": score, "family": family, "hypervolume": hypervolume(inside, (0, 0))})
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
    labels = [f"base for {k}, then tuned" for k in range(1, STEPS)]
    gap = lambda score: sum(way(found, label, reward) - way(found, label, score) for label in labels) / STEPS  # noqa: E731
    return {"curves": curves, "gap": {score: gap(score) for score in ("entropy", "diversity")}}


def at_the_page(bench: Bench, tuning: str, pictures: Pictures) -> Measuring:
    """What a visitor sees at the page's defaults, prompt by prompt: what AIG and half of the LoRA keep of diversity and reward."""
    labels = ("base", "tuned", DEFAULT, "LoRA scale 0.5")
    plan = [method for method in compared(bench, tuning) if method.label in labels]
    kept, reward, rows = (yield from measured(bench, plan, pictures)), proxy(tuning), []
    modes, n = by_modes(bench, reward), len(pictures.seeds)
    for i, (prompt, names) in enumerate(zip(pictures.prompts, pictures.open_attributes)):
        cut = {label: of.some(slice(i * n, (i + 1) * n)) for label, of in kept.items()}
        found = {label: records.scores(of, reward, modes, [names]) for label, of in cut.items()}
        kept_here = {f"{label}: reward": way(found, label, reward) for label in labels[2:]}
        kept_here |= {f"{label}: {score}": 1 - way(found, label, score) for label in labels[2:] for score in ("diversity", "entropy")}
        rows.append({name: share for name, share in sorted(kept_here.items()) if not math.isnan(share)} | {"prompt": prompt})
    shares = {name: [row[name] for row in rows if name in row] for row in rows for name in row if name != "prompt"}
    return {"prompts": rows, "medians": {name: median(values) for name, values in shares.items()}}


def gaps(bench: Bench, pictures: Pictures) -> Measuring:
    """The prediction that AIG gains where the reward is decided after the modes: gap of the switch curves and gain over LoRA scaling, for
    every tuned model, mixtures included."""
    rows = []
    for tuning in draft.OBJECTIVES:
        keep = {AIG[1], AIG[2], "LoRA scale", "base", "tuned"}
        plan = [method for method in compared(bench, tuning) if method.family in keep]
        found = yield from tuned(bench, tuning, pictures, plan)
        more = {
            row["score"]: {name: row[name] for name in ("value", "low", "high")}
            for row in found["at equal reward"]
            if row["family"] == AIG[1] and row["other"] == "LoRA scale" and row["share"] == GAP_AT
        }
        rows.append({"tuned": tuning, "gap": found["decided"]["gap"], "gain": more})
    return {"rows": rows, "share": GAP_AT}
