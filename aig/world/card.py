"""The asset's card: what the Portraits world is made of and what was measured, written from ``evaluation.json``."""

from __future__ import annotations

from collections.abc import Mapping

from aig.world import draft, preference
from aig.world.portraits import ATTRIBUTES
from aig.world.presets import Preset
from aig.world.training import seconds_spent


def times(preset: Preset) -> dict[str, float]:
    """Training minutes of each stage that has a checkpoint."""
    folders = sorted(path.parent for path in preset.work.glob("*/checkpoint.pt"))
    return {folder.name: seconds_spent(folder) / 60 for folder in folders}


def render(preset: Preset, result: Mapping) -> str:
    """The card as Markdown."""
    settings = result["settings"]
    lines = [
        "# Portraits, the embedded world",
        "",
        "A text-to-image latent diffusion model of cartoon portraits, trained from scratch on drawings whose attributes are all",
        "known, with two simulated preference rewards and LoRAs tuned on one of them. Every number below was written by",
        f"`python -m aig.world evaluate --preset {preset.name}` on the files in this folder.",
        "",
        f"- Data: {preset.drawings:,} drawings of {preset.size}x{preset.size} pixels by DiceBear 9.4.3 (authors and licences in NOTICE.md),",
        f"  {preset.held_out:,} more held out. Attributes and their distributions: `aig/world/portraits.py`.",
        f"- Autoencoder: AutoencoderTiny, {preset.latent_channels} channels at {preset.latent_size}x{preset.latent_size}, {preset.vae_steps:,} updates.",
        f"- Denoiser: UNet2DConditionModel {preset.unet_channels}, v-prediction, cosine schedule, {preset.denoiser_cycles[-1][0]:,} updates of",
        f"  {preset.denoiser_batch} drawings; text encoder ({preset.text_layers} layers of {preset.text_width}) first taught to tell what a caption names, in {preset.text_steps:,} updates.",
        f"- Rewards: Bradley-Terry models of two simulated populations of annotators (`aig/world/preference.py`), {preset.reward_steps:,} updates each.",
        f"- Tuning: DRaFT-1 with the KL term, LoRA rank {draft.RANK}, {preset.tuning_steps} updates of {draft.BATCH} prompts, KL coefficients "
        + ", ".join(f"{kl:g}" for kl in preset.kl) + ".",
        f"- Seed {preset.seed}. Make it again: `python -m aig.world all --preset {preset.name}`.",
        *([f"- {preset.note}"] if preset.note else []),
        "- Licence: CC BY 4.0.",
        "",
        "## Training time",
        "",
        "| stage | minutes |",
        "|---|---|",
        *[f"| {name} | {minutes:.0f} |" for name, minutes in result["training minutes"].items()],
        "",
        "## Measured",
        "",
        f"Autoencoder on held-out drawings: {result['autoencoder PSNR (dB)']:.2f} dB.",
        "",
        f"Prompt following, {settings['samples']:,} samples, {settings['steps']} steps, guidance {settings['guidance']:g}; a prompt names each",
        f"attribute of a held-out drawing with probability {settings['named']:g}, and the classifier says what was drawn.",
        "",
        "| attribute | right when named | asked | classifier on held-out drawings |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for name in ATTRIBUTES:
        right, asked = result["prompt followed"].get(name, (float("nan"), 0))
        lines.append(f"| {name} | {right:.1%} | {asked} | {result['ruler accuracy'][name]:.1%} |")
    lines += ["", "| reward | held-out pairs predicted | ceiling (true utility) | noise |", "|---|---|---|---|"]
    for name, (right, ceiling) in result["reward pair accuracy and ceiling"].items():
        lines.append(f"| {name} | {right:.1%} | {ceiling:.1%} | {preference.POPULATIONS[name].noise:g} |")
    lines += ["", f"Tuned models, {settings['seeds']} seeds, no prompt, {settings['steps']} steps, guidance {settings['guidance']:g}:", ""]
    columns = list(result["tuned"][0])
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in result["tuned"]:
        lines.append("| " + " | ".join(row[c] if isinstance(row[c], str) else f"{row[c]:.3f}" for c in columns) + " |")
    lines += ["", f"Machine of the evaluation: {result['machine']}; it took {result['minutes']:.0f} minutes.", ""]
    return "\n".join(lines)
