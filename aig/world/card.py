"""The asset's card: what the Portraits world is made of and what was measured, written from ``evaluation.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aig.world import denoiser, draft
from aig.world.portraits import ATTRIBUTES
from aig.world.presets import Preset
from aig.world.tradeoffs import METHODS
from aig.world.training import seconds_spent


def times(preset: Preset) -> dict[str, float]:
    """Training minutes of each stage that has a checkpoint."""
    folders = sorted(path.parent for path in preset.work.glob("*/checkpoint.pt"))
    return {folder.name: seconds_spent(folder) / 60 for folder in folders}


def render(preset: Preset, result: Mapping) -> str:
    """The card as Markdown; of parts that were not measured for these files it says so."""
    parts = [made(preset, result), measured(result)]
    parts += [tuning(result, reward) if f"tuned on {reward}" in result else missing(f"Tuning on {reward}") for reward in preset.tuned_on]
    measured_parts = [part for part in result.values() if isinstance(part, Mapping) and "minutes" in part]
    minutes, threads = sum(part["minutes"] for part in measured_parts), sorted({part["threads"] for part in measured_parts})
    machines = "; ".join(sorted({part["machine"] for part in measured_parts}))
    parts.append([f"Machine of the evaluation: {machines}; its parts took {minutes:.0f} minutes (threads: {' or '.join(map(str, threads))})."])
    return "\n".join(line for part in parts for line in (*part, ""))


def missing(what: str) -> list[str]:
    return [f"{what}: not measured yet for these files."]


def made(preset: Preset, result: Mapping) -> list[str]:
    """How the files were made."""
    return [
        "# Portraits, the embedded world",
        "",
        "A text-to-image latent diffusion model of cartoon portraits, trained from scratch on drawings whose attributes are all",
        "known, with two simulated preference rewards, and LoRAs tuned on one of them and on colourfulness. Every number below was",
        f"written by `python -m aig.world evaluate --preset {preset.name} --samples {result['settings']['samples']}` on the files in this folder, every figure by `figures`.",
        "",
        f"- Data: {preset.drawings:,} drawings of {preset.size}x{preset.size} pixels by DiceBear 9.4.3 (authors and licences in NOTICE.md),",
        f"  {preset.held_out:,} more held out. Attributes and their distributions: `aig/world/portraits.py`.",
        f"- Autoencoder: AutoencoderTiny, {preset.latent_channels} channels at {preset.latent_size}x{preset.latent_size}, {preset.vae_steps:,} updates,\n"
        f"  and {preset.decoder_steps:,} of the decoder alone.",
        f"- Denoiser: UNet2DConditionModel {preset.unet_channels}, v-prediction, cosine schedule\n"
        f"  between noise levels {denoiser.NOISE[0]:g} and {denoiser.NOISE[1]:g}, {preset.denoiser_cycles[-1][0]:,} updates of",
        f"  {preset.denoiser_batch} drawings, half of them at the noise levels that sampling takes, places where moods differ weighing up to {denoiser.SUBTLE:g} times",
        f"  as much; text encoder ({preset.text_layers} layers of {preset.text_width}) first taught to tell what a caption names, in {preset.text_steps:,} updates.",
        f"  Before each of the last {preset.tilted_cycles} cycles of the learning rate {preset.tilt_samples:,} samples, as told by the classifier that also measures below,",
        "  corrected the drawings' weights (`aig/world/tilt.py`).",
        f"- Rewards: Bradley-Terry models of two simulated populations of annotators (`aig/world/preference.py`), {preset.reward_steps:,} updates each,",
        "  the proxy as many more against attacks.",
        f"- Tuning: DRaFT with the KL term on the last and {draft.EARLY} earlier step, LoRA rank {draft.RANK}, {preset.tuning_steps} updates of {draft.BATCH} prompts, on {' and '.join(preset.tuned_on)},",
        "  KL coefficients " + ", ".join(f"{kl:g}" for kl in preset.kl) + ".",
        f"- Seed {preset.seed}. Make it again: `python -m aig.world all --preset {preset.name}`.",
        *([f"- {preset.note}"] if preset.note else []),
        "- Licence: CC BY 4.0.",
        "",
        "## Training time",
        "",
        "| stage | minutes |",
        "|---|---|",
        *[f"| {name} | {minutes:.0f} |" for name, minutes in result["training minutes"].items()],
        f"| together | {sum(result['training minutes'].values()):.0f} |",
        "",
        "## Measured",
    ]  # fmt: skip


def measured(result: Mapping) -> list[str]:
    """The base model, the classifier and the rewards."""
    settings, instruments = result["settings"], result["instruments"]
    lines = [
        f"Autoencoder on held-out drawings: {instruments['autoencoder PSNR (dB)']:.2f} dB.",
        "",
        "![The first held-out drawings, and below each its reconstruction, four times enlarged](figures/reconstructions.webp)",
        "",
        f"Prompt following, {settings['samples']:,} samples, {settings['steps']} steps, guidance {settings['guidance']:g}; a prompt names each",
        f"attribute of a held-out drawing with probability {settings['named']:g}, in combinations that no training drawing has, and the",
        "classifier says what was drawn. Distribution: total variation of the samples without a prompt from the drawings.",
        "",
        "| attribute | right when named | asked | classifier on held-out drawings | distribution |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for name in ATTRIBUTES:
        right, asked = result.get("prompts", {}).get(name, (0.0, 0))
        variation = f"{result['population']['total variation'][name]:.3f}" if "population" in result else ""
        lines.append(f"| {name} | {f'{right:.1%}' if asked else ''} | {asked} | {instruments['ruler accuracy'][name]:.1%} | {variation} |")
    lines += ["", *(population(result["population"]) if "population" in result else missing("Precision and recall"))]
    compared = [part for name, part in result.items() if name.startswith("solver ")]
    lines += ["", *(solvers(compared) if compared else missing("Steps, solver and guidance"))]
    lines += [
        "",
        "| reward | held-out pairs predicted | ceiling (true utility) | rise under attack, in standard deviations |",
        "|---|---|---|---|",
    ]
    pairs = instruments["reward pair accuracy and ceiling"]
    for name, rise in instruments["rise under attack (standard deviations)"].items():
        right, ceiling = (f"{share:.1%}" for share in pairs[name]) if name in pairs else ("a formula", "")
        lines.append(f"| {name} | {right} | {ceiling} | {rise:.2f} |")
    return [*lines, "", "Attack: 50 steps of gradient ascent on the pixels of 64 held-out drawings, each value within 8/255."]


def population(found: Mapping) -> list[str]:
    n = f"{found['samples']:,}"
    return [
        f"Without a prompt: precision {found['precision']:.2f}, recall {found['recall']:.2f} (k-NN, k = 3, own features, {n} against {n}),",
        f"Fréchet distance {found['Fréchet distance']:.3f}.",
        "",
        "![The first samples without a prompt, and below each the training drawing whose features are nearest](figures/neighbours.webp)",
    ]


def solvers(parts: Sequence[Mapping]) -> list[str]:
    """Fréchet distances by solver, guidance, samples (lines) and steps (columns)."""
    lines: dict[tuple[str, float, int], dict[int, float]] = {}
    for part in parts:
        for row in part["table"]:
            lines.setdefault((row["solver"], row["guidance"], part["samples"]), {})[row["steps"]] = row["Fréchet distance"]
    steps = sorted({n for line in lines.values() for n in line})
    rows = [
        {"solver": name, "guidance": scale, "samples": f"{samples:,}"} | {f"{n} steps": line.get(n, "") for n in steps}
        for (name, scale, samples), line in lines.items()
    ]
    return [
        "Fréchet distance to 5,000 drawings by steps, always of the same noises under the same held-out captions (few samples overstate",
        "every distance):",
        "",
        *table(rows),
    ]


def tuning(result: Mapping, reward: str) -> list[str]:
    """What tuning on a reward did."""
    settings, found = result["settings"], result[f"tuned on {reward}"]
    last = "; ".join(f"{name.removeprefix('AIG ')}: {share:.2f}" for name, share in found["last shares"].items())
    return [
        f"Tuned on {reward}: {settings['seeds']} seeds, no prompt, {settings['steps']} steps. *By modes* is the part of the reward that a linear fit on",
        "attributes explains, *within modes* the rest; entropy is the normalised entropy, mean over the attributes; confidence is the",
        "classifier's; diversity is the mean pairwise distance of features; precision is against 5,000 drawings. *Gain kept* is the share of",
        "the reward that tuning without KL won, *entropy kept* and *diversity kept* those of what it lost.",
        f"AIG's share of the tuned model at the last step: {last}.",
        "",
        *table(kept(found["table"], reward)),
        "",
        "Scores of AIG above those of the others at the same reward, with 95% jackknife intervals over the seeds, where these differ at all,",
        "not over trainings and not corrected for the number of comparisons; the others' on straight",
        "lines between their rows from base to KL 0. (Where a curve is bent outwards, lines between few rows run below it, which favours AIG.)",
        "",
        *table(compared(found["at equal reward"])),
        "",
        f"![Tuning on {reward} in pictures: the same seeds under every method](figures/hacking-{reward}.webp)",
        "",
        f"![Rewards and entropy while tuning on {reward}; every method's reward against its entropy](figures/tradeoff-{reward}.svg)",
    ]


def kept(rows: Sequence[Mapping], reward: str) -> list[dict]:
    """The rows with what each method keeps of what tuning without KL won and lost."""
    named = {row["method"]: row for row in rows}
    base, tuned = named["base"], named["KL 0"]

    def share(row: Mapping, score: str, worst: Mapping, best: Mapping) -> float:
        span = best[score] - worst[score]
        return (row[score] - worst[score]) / span if span else float("nan")

    lost = ("entropy", "diversity")
    return [
        {**row, "gain kept": share(row, reward, base, tuned)} | {f"{name} kept": share(row, name, tuned, base) for name in lost}
        for row in rows
    ]


def compared(rows: Sequence[Mapping]) -> list[dict]:
    """``tradeoffs.at_equal_reward`` as a line for each score and schedule."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cells = lines.setdefault((row["score"], row["method"]), {})
        interval = f" ({row['low']:+.2f} to {row['high']:+.2f})" if row["low"] < row["high"] else ""
        cells[row["other"]] = f"{row['more']:+.3f}{interval}"
    others = [name for name in METHODS if name != "AIG"]
    return [
        {"score": score, "method": method} | {f"above {name}": cells.get(name, "") for name in others}
        for (score, method), cells in lines.items()
    ]


def table(rows: Sequence[Mapping[str, float | str]]) -> list[str]:
    """Rows with the same keys as the lines of a Markdown table."""

    def shown(value: float | str) -> str:
        return "" if value != value else f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return lines + ["| " + " | ".join(map(shown, row.values())) + " |" for row in rows]
