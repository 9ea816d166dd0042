"""The asset's card: what the Portraits world is made of and what was measured, written from ``evaluation.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aig.portraits.population import ATTRIBUTES
from aig.training import seconds_spent
from aig.world import denoiser, draft
from aig.world.presets import World
from aig.world.tradeoffs import LEVEL


def times(preset: World) -> dict[str, float]:
    """Training minutes of each stage that has a checkpoint."""
    folders = sorted(path.parent for path in preset.work.glob("*/checkpoint.pt"))
    return {folder.name: seconds_spent(folder) / 60 for folder in folders}


def render(preset: World, result: Mapping) -> str:
    """The card as Markdown; of parts that were not measured for these files it says so."""
    parts = [made(preset, result), measured(result)]
    parts += [page(result["page"]) if "page" in result else missing("The page at its defaults")]
    for kind in ("tuned", "prompted"):
        parts += [tuning(part, name.removeprefix(f"{kind}: ")) for name, part in result.items() if name.startswith(f"{kind}: ")]
    parts += [gaps(result["gaps"]) if "gaps" in result else missing("The gap of the switch curves")]
    measured_parts = [part for part in result.values() if isinstance(part, Mapping) and "minutes" in part]
    minutes, threads = sum(part["minutes"] for part in measured_parts), sorted({part["threads"] for part in measured_parts})
    machines = "; ".join(sorted({part["machine"] for part in measured_parts}))
    parts.append(
        [f"Machine of the evaluation: {machines}; its parts took {minutes:.0f} minutes (threads: {' or '.join(map(str, threads))})."]
    )
    return "\n".join(line for part in parts for line in (*part, ""))


def missing(what: str) -> list[str]:
    return [f"{what}: not measured yet for these files."]


def made(preset: World, result: Mapping) -> list[str]:
    """How the files were made."""
    return [
        "# Portraits, the embedded world",
        "",
        "A text-to-image latent diffusion model of cartoon portraits, trained from scratch on drawings whose attributes are all",
        "known, with three simulated preference rewards, and LoRAs tuned on two of them and on colourfulness. Every number below was",
        f"written by `python -m aig.world evaluate --preset {preset.name} --samples {result['settings']['samples']}` on the files in this folder, every figure by `figures`.",
        "",
        f"- Data: {preset.drawings:,} drawings of {preset.size}x{preset.size} pixels by DiceBear 9.4.3 (authors and licences in NOTICE.md),",
        f"  {preset.held_out:,} more held out. Attributes and their distributions: `aig/portraits/population.py`.",
        f"- Autoencoder: AutoencoderTiny, {preset.latent_channels} channels at {preset.latent_size}x{preset.latent_size}, {preset.vae_steps:,} updates,\n"
        f"  and {preset.decoder_steps:,} of the decoder alone.",
        f"- Denoiser: UNet2DConditionModel {preset.unet_channels}, v-prediction, cosine schedule\n"
        f"  between noise levels {denoiser.NOISE[0]:g} and {denoiser.NOISE[1]:g}, {preset.denoiser_cycles[-1][0]:,} updates of",
        f"  {preset.denoiser_batch} drawings, half of them at the noise levels that sampling takes, places where moods differ weighing up to {denoiser.SUBTLE:g} times",
        f"  as much; text encoder ({preset.text_layers} layers of {preset.text_width}) first taught to tell what a caption names, in {preset.text_steps:,} updates.",
        f"  Before each of the last {preset.tilted_cycles} cycles of the learning rate {preset.tilt_samples:,} samples, as told by the classifier that also measures below,",
        "  corrected the drawings' weights (`aig/world/tilt.py`).",
        f"- Rewards: Bradley-Terry models of three simulated populations of annotators (`aig/world/tastes.py`), {preset.reward_steps:,} updates each,",
        "  those that are tuned on as many more against attacks.",
        f"- Tuning: DRaFT with the KL term on the last and {draft.EARLY} earlier step, LoRA rank {draft.RANK}, {draft.BATCH} prompts an update; on "
        + ", ".join(f"{name} {preset.updates(name)[-1]} updates" for name in draft.SHIPPED) + ",",
        "  KL coefficients " + ", ".join(f"{kl:g}" for kl in preset.kl) + ".",
        f"- Seed {preset.seed}. Make it again: `python -m aig.world all --preset {preset.name}`.",
        *(["- The shipped weights took a longer way than this recipe: [history.md](history.md)."] if preset.name == "cpu" else []),
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
        "| attribute | right when named | asked | classifier on held-out drawings | the same, lit at random | distribution |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in ATTRIBUTES:
        right, asked = result.get("prompts", {}).get(name, (0.0, 0))
        variation = f"{result['population']['total variation'][name]:.3f}" if "population" in result else ""
        lines.append(
            f"| {name} | {f'{right:.1%}' if asked else ''} | {asked} | {instruments['ruler accuracy'][name]:.1%} | {instruments['ruler accuracy, lit'][name]:.1%} | {variation} |"
        )
    lines += ["", *(population(result["population"]) if "population" in result else missing("Precision and recall"))]
    compared = [part for name, part in result.items() if name.startswith("solver ")]
    lines += ["", *(solvers(compared) if compared else missing("Steps, solver and guidance"))]
    lines += [
        "",
        f"Light moves a drawing's features by {instruments['light moves features']:.1%} of the distance between two drawings.",
        "",
        "| reward | held-out pairs predicted | ceiling (true utility) | variance between modes | within | rise by light | rise under attack |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = instruments["reward pair accuracy and ceiling"]
    for name, of in instruments["rewards"].items():
        right, ceiling = (f"{share:.1%}" for share in pairs[name]) if name in pairs else ("a formula", "")
        between = of["variance between modes"]
        lines.append(
            f"| {name} | {right} | {ceiling} | {between:.0%} | {1 - between:.0%} | {of['rise by light']['mean']:+.2f} | {of['rise under attack']:.2f} |"
        )
    spread = {name: value for name, value in instruments["rewards"]["preference"]["rise by light"].items() if name != "mean"}
    worst = max(spread, key=spread.__getitem__)
    lines += [
        "",
        "Variance: of drawings finished at random, as annotators see them. Rises are in standard deviations of the reward: by light from 0 to",
        "1 in held-out drawings, and under attack, 50 steps of gradient ascent on the pixels of 64 of them, each value within 8/255. What",
        f"light is worth for *preference* differs most between the values of the attribute {worst}, by {spread[worst]:.2f}.",
        "",
        "![Drawings under the studio light that one of the rewards pays for](figures/light.webp)",
    ]
    return lines


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


def tuning(found: Mapping, name: str) -> list[str]:
    """What tuning did, as one part of the evaluation measured it."""
    reward, pictures = found["reward"], found["pictures"]
    prompts = [prompt for prompt in pictures["prompts"] if prompt]
    where = f"{len(prompts)} prompts x {pictures['seeds']} seeds" if prompts else f"{pictures['seeds']} seeds, no prompt"
    last = "; ".join(f"{label.removeprefix('AIG ')}: {share:.2f}" for label, share in found["last shares"].items() if share < 1)
    lines = [
        f"### {name}",
        "",
        f"{where}, guidance {pictures['guidance']:g}. *By modes* is the part of the reward that a linear fit on attributes explains,",
        "*within modes* the rest; entropy is the normalised entropy, mean over the attributes that the prompt leaves open; confidence is the",
        "classifier's; diversity is the mean pairwise distance of features; precision is against 5,000 drawings lit at random. *Gain kept*",
        "is the share of the reward that tuning without KL won, *entropy kept* and *diversity kept* those of what it lost.",
        *([f"AIG's share of the tuned model at the last step: {last}."] if last else []),
        "",
        *table(kept(found["table"], reward)),
        "",
        "Area under each family's front, of the square from the tuned model to the base in the score, from the base to the tuned model in the reward:",
        "",
        *table(areas(found["hypervolumes"])),
        "",
        *at_equal_reward(found["at equal reward"]),
    ]
    if found["decided"]:
        gap = found["decided"]["gap"]
        lines += [
            "",
            f"Gap between the switch curves: {gap['entropy']:.2f} of the run for entropy, {gap['diversity']:.2f} for diversity"
            " (curves in `evaluation.json`).",
        ]
    if not prompts and name in draft.SHIPPED:
        lines += [
            "",
            f"![Tuning on {name} in pictures: the same seeds under every method](figures/hacking-{name}.webp)",
            "",
            f"![Rewards and entropy while tuning on {name}; every method's reward against its entropy](figures/tradeoff-{name}.svg)",
            "",
            f"![The switch curves of {name}: one model for the first k steps, then the other](figures/decided-{name}.svg)",
        ]
    return lines


def kept(rows: Sequence[Mapping], reward: str) -> list[dict]:
    """The rows' values with what each method keeps of what tuning without KL won and lost."""
    plain = [{name: score["value"] if isinstance(score, Mapping) else score for name, score in row.items()} for row in rows]
    named = {row["method"]: row for row in plain}
    base, tuned = named["base"], named["tuned"]

    def share(row: Mapping, score: str, worst: Mapping, best: Mapping) -> float:
        span = best[score] - worst[score]
        return (row[score] - worst[score]) / span if span else float("nan")

    lost = ("entropy", "diversity")
    return [
        {**row, "gain kept": share(row, reward, base, tuned)} | {f"{name} kept": share(row, name, tuned, base) for name in lost}
        for row in plain
    ]


def areas(rows: Sequence[Mapping]) -> list[dict]:
    """Hypervolumes, a line a family."""
    lines: dict[str, dict] = {}
    for row in rows:
        lines.setdefault(row["family"], {"family": row["family"]})[row["score"]] = row["hypervolume"]
    return list(lines.values())


def at_equal_reward(rows: Sequence[Mapping]) -> list[str]:
    """How often AIG is surely ahead, open, or surely behind, and the differences at the shares of the gain."""
    if not rows:
        return []
    counts, lines = {}, {}
    for row in rows:
        side = "open" if row["p"] > LEVEL else "ahead" if row["value"] > 0 else "behind"
        cell = counts.setdefault(
            (row["family"], row["score"]), {"family": row["family"], "score": row["score"], "ahead": 0, "open": 0, "behind": 0}
        )
        cell[side] += 1
        line = lines.setdefault(
            (row["family"], row["other"], row["score"]), {"family": row["family"], "against": row["other"], "score": row["score"]}
        )
        mark = "" if row["p"] > LEVEL else "*"
        line[f"{row['share']:.0%}"] = f"{row['value']:+.3f}{mark} ({row['low']:+.2f} to {row['high']:+.2f})"
    shares = sorted({f"{row['share']:.0%}" for row in rows})
    blank = dict.fromkeys(shares, "")
    return [
        f"Scores of AIG above those of other methods at the same reward, at {', '.join(shares)} of the gain, both on straight lines between their",
        f"strengths: jackknife intervals (95%) over the seeds, not over trainings; * sure at {LEVEL:g} by Holm's correction over all {len(rows)}",
        "comparisons of this table. So many of them are ahead, open, behind:",
        "",
        *table(list(counts.values())),
        "",
        *table([line | {s: line.get(s, "") for s in blank} for line in lines.values()]),
    ]


def page(found: Mapping) -> list[str]:
    """What the page shows at its defaults."""
    medians = [{"kept, median over the prompts": name, "share": value} for name, value in found["medians"].items()]
    return [
        f"### The page at its defaults: {len(found['prompts'])} prompts, the first seeds, none chosen",
        "",
        *table(medians),
    ]


def gaps(found: Mapping) -> list[str]:
    """The gap of the switch curves and AIG's gain, a line a tuned model."""

    def gain(row: Mapping, score: str) -> str:
        return (
            f"{row['gain'][score]['value']:+.3f} ({row['gain'][score]['low']:+.2f} to {row['gain'][score]['high']:+.2f})"
            if score in row["gain"]
            else ""
        )

    rows = [
        {"tuned on": row["tuned"]}
        | {f"gap in {score}": row["gap"][score] for score in ("entropy", "diversity")}
        | {f"{score} of AIG above LoRA scaling": gain(row, score) for score in ("entropy", "diversity")}
        for row in found["rows"]
    ]
    return [
        f"### Where AIG gains: the gap of the switch curves, and AIG (power, ending at 1) against LoRA scaling at {found['share']:.0%} of the gain",
        "",
        *table(rows),
        "",
        "![Gain of AIG over LoRA scaling against the gap between the switch curves](figures/gap.svg)",
    ]


def table(rows: Sequence[Mapping[str, float | str]]) -> list[str]:
    """Rows with the same keys as the lines of a Markdown table."""

    def shown(value: float | str) -> str:
        return "" if value != value else f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return lines + ["| " + " | ".join(map(shown, row.values())) + " |" for row in rows]
