"""The asset's card: what the Portraits world is made of and what was measured, written from ``evaluation.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aig.world import draft
from aig.world.portraits import ATTRIBUTES
from aig.world.presets import Preset
from aig.world.training import seconds_spent


def times(preset: Preset) -> dict[str, float]:
    """Training minutes of each stage that has a checkpoint."""
    folders = sorted(path.parent for path in preset.work.glob("*/checkpoint.pt"))
    return {folder.name: seconds_spent(folder) / 60 for folder in folders}


def render(preset: Preset, result: Mapping) -> str:
    """The card as Markdown."""
    settings, instruments, population = result["settings"], result["instruments"], result["population"]
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
        f"- Tuning: DRaFT-1 with the KL term, LoRA rank {draft.RANK}, {preset.tuning_steps} updates of {draft.BATCH} prompts, on {' and '.join(preset.tuned_on)}, KL coefficients "
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
        f"Autoencoder on held-out drawings: {instruments['autoencoder PSNR (dB)']:.2f} dB.",
        "",
        f"Prompt following, {settings['samples']:,} samples, {settings['steps']} steps, guidance {settings['guidance']:g}; a prompt names each",
        f"attribute of a held-out drawing with probability {settings['named']:g}, in combinations that no training drawing has, and the",
        f"classifier says what was drawn. Distribution: total variation of {population['samples']:,} samples without a prompt from the drawings.",
        "",
        "| attribute | right when named | asked | classifier on held-out drawings | distribution |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for name in ATTRIBUTES:
        right, asked = result["prompts"].get(name, (float("nan"), 0))
        told, variation = instruments["ruler accuracy"][name], population["total variation"][name]
        lines.append(f"| {name} | {right:.1%} | {asked} | {told:.1%} | {variation:.3f} |")
    lines += [
        "",
        f"Without a prompt: precision {population['precision']:.2f}, recall {population['recall']:.2f} (k-NN, k = 3, own features,",
        f"{population['samples']:,} against {population['samples']:,}), Fréchet distance {population['Fréchet distance']:.3f}.",
        "",
        f"Steps, solver and guidance, {result['solvers']['samples']:,} samples each under held-out captions, against 5,000 drawings:",
        "",
        *table(result["solvers"]["table"]),
        "",
        "| reward | held-out pairs predicted | ceiling (true utility) | rise under attack, in standard deviations |",
        "|---|---|---|---|",
    ]
    pairs = instruments["reward pair accuracy and ceiling"]
    for name, rise in instruments["rise under attack (standard deviations)"].items():
        right, ceiling = (f"{share:.1%}" for share in pairs[name]) if name in pairs else ("a formula", "")
        lines.append(f"| {name} | {right} | {ceiling} | {rise:.2f} |")
    lines += ["", "Attack: 50 steps of gradient ascent on the pixels of 64 held-out drawings, each value within 8/255."]
    for reward in preset.tuned_on:
        lines += [
            "",
            f"Tuned on {reward}: {settings['seeds']} seeds, no prompt, {settings['steps']} steps. *By modes* is the part of the reward that a linear fit on",
            "attributes explains, *within modes* the rest; entropy is the normalised entropy, mean over the attributes; confidence is the",
            "classifier's; precision is against 5,000 drawings.",
            "",
            *table(result[f"tuned on {reward}"]["table"]),
        ]
    minutes = sum(part["minutes"] for part in result.values() if isinstance(part, dict) and "minutes" in part)
    lines += ["", f"Machine of the evaluation: {result['machine']}; it took {minutes:.0f} minutes.", ""]
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, float | str]]) -> list[str]:
    """Rows with the same keys as the lines of a Markdown table."""
    shown = lambda value: f"{value:.3f}" if isinstance(value, float) else str(value)  # noqa: E731
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return lines + ["| " + " | ".join(map(shown, row.values())) + " |" for row in rows]
