"""Tradeoffs: what tuning on a reward won and lost, for every method that is compared. Parts of stage ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from aig.adapters import fused
from aig.diversity import attribute_entropy, distances, mean_pairwise
from aig.sampling import Column, sample
from aig.schedules import parse, weights
from aig.world import data, draft
from aig.world.bench import STEPS, Bench, Part
from aig.world.portraits import ATTRIBUTES
from aig.world.quality import covered

SEEDS = tuple(range(1_000, 1_064))  # the same 64 people, without a prompt, for every tuned model
SCALES = (0.25, 0.5, 0.75, 2.0, 4.0)  # of the LoRA that was tuned without KL; above 1 is what more tuning would lead to


def tuned(bench: Bench, reward: str) -> Part:
    """What tuning on a reward did: every KL coefficient and checkpoint, LoRA scales and AIG on the run without KL."""
    modes, table, plan = by_modes(bench, reward), [], methods(bench, reward)
    for label, (denoiser, schedule) in plan.items():
        table.append({"method": label, **measure(bench, reward, modes, pictures(bench, denoiser(), schedule, SEEDS))})
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
    worth = torch.cat([rewarded(bench, reward, batch) for batch in data.batches(images)])
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
