"""Stage ``evaluate``: measure the shipped asset on held-out drawings and fresh samples; the card is written from the result."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from aig import models
from aig.diversity import attribute_entropy, distances, mean_pairwise
from aig.sampling import Column, sample
from aig.schedules import parse, weights
from aig.world import autoencoder, card, data, preference, ruler
from aig.world.captions import named_attributes, sentence
from aig.world.portraits import ATTRIBUTES, NONE, decode
from aig.world.presets import Preset

SAMPLES, BATCH, STEPS, GUIDANCE = 2_000, 40, 12, 4.0
P_NAMED = 0.5  # of each attribute in an evaluation prompt
TUNED_SEEDS = tuple(range(1_000, 1_032))  # the same 32 people, without a prompt, for every tuned model


def run(preset: Preset, *, assets: Path = models.ASSETS, samples: int = SAMPLES) -> Iterator[dict[str, float]]:
    """Measure everything and write ``evaluation.json`` into the asset folder; yields progress."""
    began = time.monotonic()
    folder = assets / "portraits"
    model = models.load("portraits", assets=assets)
    images, labels = data.load(preset)
    held_images, held_labels = images[preset.drawings :], labels[preset.drawings :]
    measured_ruler = ruler.Ruler(ATTRIBUTES)
    measured_ruler.load_state_dict(load_file(folder / "ruler.safetensors"))
    result = {
        "autoencoder PSNR (dB)": autoencoder.evaluate(model.pipe.vae, held_images),
        "ruler accuracy": ruler.accuracy(measured_ruler.eval(), held_images, held_labels),
        "reward pair accuracy and ceiling": {n: preference.pair_accuracy(r, preset, n) for n, r in model.rewards.items()},
    }
    hits: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    rng = torch.Generator().manual_seed(2_026)
    for start in range(0, samples, BATCH):
        prompts = [prompt_of(held_labels[(start + i) % len(held_labels)], rng) for i in range(BATCH)]
        pictures = draw(model, prompts, seeds=range(start, start + BATCH))
        for name, probabilities in model.attributes(pictures).items():
            for row, prompt in enumerate(prompts):
                value = named_attributes(prompt).get(name)
                if value:
                    hits[name].append(ATTRIBUTES[name][int(probabilities[row].argmax())] == value)
        yield {"step": start + BATCH, "steps": samples}
    result["prompt followed"] = {name: [sum(h) / len(h), len(h)] for name, h in hits.items() if h}
    result["tuned"] = tuned_table(model)
    result["settings"] = {"samples": samples, "steps": STEPS, "guidance": GUIDANCE, "named": P_NAMED, "seeds": len(TUNED_SEEDS)}
    result["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    result["minutes"] = (time.monotonic() - began) / 60
    result["training minutes"] = card.times(preset)
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "card.md").write_text(card.render(preset, result))


def prompt_of(labels, rng: torch.Generator) -> str:
    """A prompt that names about half of what a held-out drawing shows."""
    person = decode(labels)
    named = {k: v for k, v in person.items() if v != NONE and float(torch.rand((), generator=rng)) < P_NAMED}
    return sentence(named, rng, robot=person["style"] == "bottts")


def draw(model: models.Model, prompts: list[str], seeds) -> torch.Tensor:
    """One image a prompt, (B, 3, H, W) in [0, 1], by the stock pipeline call."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    out = model.pipe(prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="pt")
    return out.images


def tuned_table(model: models.Model) -> list[dict[str, float | str]]:
    """Rewards and diversity of the base, of every tuned model, and of AIG and LoRA scaling on the one without KL."""
    schedule = {"base": (0.0,) * STEPS, "tuned": (1.0,) * STEPS}
    schedule |= {f"AIG {name}": weights(parse(name), STEPS) for name in ("linear", "power_2", "power_4", "step_0.6")}
    plan = [("base", model.kl[0], 1.0, "base")]
    plan += [(f"tuned, KL {kl:g}", kl, 1.0, "tuned") for kl in model.kl]
    plan += [(f"tuned, KL {model.kl[0]:g}, LoRA scale {scale:g}", model.kl[0], scale, "tuned") for scale in (0.25, 0.5, 0.75)]
    plan += [(f"{name} on KL {model.kl[0]:g}", model.kl[0], 1.0, name) for name in schedule if name.startswith("AIG")]
    return [{"method": label, **measure(model, kl, scale, schedule[name])} for label, kl, scale, name in plan]


def measure(model: models.Model, kl: float, scale: float, share: tuple[float, ...]) -> dict[str, float]:
    """Mean rewards, mean pairwise distance and mean attribute entropy of the ``TUNED_SEEDS`` without a prompt."""
    column, parts = Column(name="measured", weights=tuple(share)), []
    for start in range(0, len(TUNED_SEEDS), 16):
        frame = sample(
            model.pipe, [column], prompt="", seeds=TUNED_SEEDS[start : start + 16], steps=STEPS, guidance=GUIDANCE,
            tuned=model.twin(kl, scale),
        )  # fmt: skip
        parts.append(frame.images[0])
    pictures = torch.cat(parts)
    features, classes = model.measure(pictures)
    row = {name: float(reward(pictures, [""] * len(pictures)).mean()) for name, reward in model.rewards.items()}
    row["diversity"] = float(mean_pairwise(distances(features)))
    entropies = {name: float(attribute_entropy(p)) for name, p in classes.items()}
    return row | {"entropy": sum(entropies.values()) / len(entropies), "style entropy": entropies["style"]}
