"""Stage ``figures``: the card's pictures, from the shipped weights and from what ``evaluate`` measured.

Nothing is chosen by hand: samples are those of the first seeds that ``evaluate`` uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from aig.assets import ASSETS
from aig.portraits.light import MOST_LIGHT, lit
from aig.runs.export import COLOURS
from aig.world import draft, evaluate, methods
from aig.world.autoencoder import reconstructed
from aig.world.bench import Bench, draw, features_of, load
from aig.world.data import unit
from aig.world.presets import World

SEEDS = tuple(range(1_000, 1_012))
CELL, GAP, LABEL = 96, 3, 250  # pixels; the world's pictures are enlarged
ZOOMED = 6  # held-out drawings that are shown with their reconstructions


def run(preset: World, *, assets: Path = ASSETS) -> Iterator[dict[str, float]]:
    """Draw all of which ``evaluate`` has the figures into ``figures`` of the asset folder; yields progress."""
    bench = load(preset, assets=assets)
    folder = bench.folder / "figures"
    folder.mkdir(exist_ok=True)
    found = evaluate.read(bench.folder)
    jobs: list[Callable[[], None]] = [
        lambda: save(reconstructions(bench), folder / "reconstructions.webp", lossless=True),
        lambda: save(neighbours(bench), folder / "neighbours.webp"),
        lambda: save(lights(bench), folder / "light.webp"),
    ]
    if "gaps" in found:
        jobs.append(lambda: gaps(found["gaps"], folder / "gap.svg"))
    for name in draft.SHIPPED:
        jobs.append(partial(lambda name: save(hacking(bench, name), folder / f"hacking-{name}.webp"), name))
        part = found.get(f"tuned: {name}")
        jobs += (
            []
            if part is None
            else [
                partial(curves, part, preset.updates(name), folder / f"tradeoff-{name}.svg"),
                partial(decided, part, folder / f"decided-{name}.svg"),
            ]
        )
    for done, job in enumerate(jobs, 1):
        job()
        yield {"step": done, "steps": len(jobs)}


def save(sheet: Image.Image, path: Path, *, lossless: bool = False) -> None:
    sheet.save(path, "webp", quality=90, method=6, lossless=lossless)


@torch.no_grad()
def reconstructions(bench: Bench) -> Image.Image:
    """The first held-out drawings and what the autoencoder makes of them, enlarged four times."""
    drawn = unit(bench.images[bench.held][:ZOOMED])
    made = reconstructed(bench.model.pipe.vae, drawn)
    return sheet({"held-out drawing": drawn, "reconstruction": made}, cell=4 * bench.preset.size, resample=Image.Resampling.NEAREST)


def neighbours(bench: Bench) -> Image.Image:
    """Samples without a prompt, and below each the drawing of the training data whose features are nearest."""
    seeds = range(evaluate.FIRST_SEED, evaluate.FIRST_SEED + len(SEEDS))
    drawn = draw(bench.model.pipe, [""] * len(SEEDS), seeds, guidance=1.0)
    trained = bench.images[: bench.preset.drawings]
    nearest = torch.cdist(bench.model.features(drawn), features_of(bench.model, trained)).argmin(1)
    return sheet({"sample": drawn, "nearest drawing": unit(trained[nearest.numpy()])})


def lights(bench: Bench) -> Image.Image:
    """The first held-out drawings under more and more of the studio light that annotators are shown."""
    drawn = unit(bench.images[bench.held][: len(SEEDS)])
    return sheet({f"light {a:g}": lit(drawn, torch.full((len(drawn),), a)) for a in (0.0, 0.45, 0.9, MOST_LIGHT)})


def hacking(bench: Bench, tuning: str) -> Image.Image:
    """The same people at every stage of tuning without KL, beyond it, and with AIG."""
    plan = {method.label: method for method in methods.compared(bench, tuning)}
    stages = [f"after {n} updates" for n in bench.preset.updates(tuning)[1:-1:2]]
    kept = ["LoRA scale 2", "KL 1", "LoRA scale 0.5", "AIG power_1, ending at 1", methods.DEFAULT, "base for 7, then tuned"]
    wanted = ["base", *stages, "tuned", *kept]
    few = replace(methods.without_prompt(len(SEEDS)), seeds=SEEDS)
    return sheet({label: methods.drawn(bench, [plan[label]], few)[0] for label in wanted if label in plan})


def sheet(rows: Mapping[str, Tensor], *, cell: int = CELL, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """Labelled rows of pictures (N, 3, H, W) in [0, 1], each ``cell`` pixels wide."""
    across = max(len(pictures) for pictures in rows.values())
    page = Image.new("RGB", (LABEL + across * (cell + GAP), len(rows) * (cell + GAP)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(18)
    for y, (label, pictures) in enumerate(rows.items()):
        pen.text((8, y * (cell + GAP) + cell // 2), label, fill="#15181d", font=font, anchor="lm")
        for x, picture in enumerate(pictures):
            pixels = picture.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
            page.paste(Image.fromarray(pixels).resize((cell, cell), resample), (LABEL + x * (cell + GAP), y * (cell + GAP)))
    return page


def curves(part: Mapping, updates: Sequence[int], path: Path) -> None:
    """Rewards and entropy over updates without KL; and every family's reward against its entropy."""
    reward, pyplot = part["reward"], plots()
    rows = {row["method"]: row for row in part["table"]}
    value = lambda labels, name: [rows[label][name]["value"] for label in labels]  # noqa: E731
    stages = ["base", *(f"after {n} updates" for n in updates[:-1]), "tuned"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for colour, name in zip(COLOURS[3:], (reward, "held-out"), strict=False):
        left.plot([0, *updates], value(stages, name), "o-", color=colour, label=name)
    left.plot([0, *updates], value(stages, "entropy"), "s--", color=COLOURS[5], label="entropy")
    left.set(xlabel="updates without KL", ylabel="reward (standard deviations); entropy (0 to 1)")
    left.legend(frameon=False)
    for i, (family, labels) in enumerate(part["families"].items()):
        ordered = sorted(labels, key=lambda label: rows[label][reward]["value"])
        ours = family.startswith("AIG")
        style = {"color": COLOURS[2] if ours else pyplot.get_cmap("tab10")(i), "marker": "osD^"[i] if ours else "."}
        right.plot(value(ordered, reward), value(ordered, "entropy"), "-", label=family, markersize=4, **style)
    right.set(xlabel=f"{reward} reward", ylabel="entropy of attributes")
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def decided(part: Mapping, path: Path) -> None:
    """The switch curves with their intervals: reward, entropy and diversity by the number of steps that the first model runs."""
    reward, pyplot = part["reward"], plots()
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    for panel, (direction, rows) in zip(panels, part["decided"]["curves"].items()):
        k, first, last = [row["k"] for row in rows], rows[0], rows[-1]
        for colour, name in zip((COLOURS[3], COLOURS[5], COLOURS[4]), (reward, "entropy", "diversity")):
            low, high = sorted((first[name]["value"], last[name]["value"]))
            span = (high - low) or 1.0
            at = {edge: [(row[name][edge] - low) / span for row in rows] for edge in ("value", "low", "high")}
            panel.plot(k, at["value"], "o-", color=colour, label=name, markersize=4)
            panel.fill_between(k, at["low"], at["high"], color=colour, alpha=0.2, linewidth=0)
        panel.set(title=direction, xlabel="steps of the first model", ylabel="between tuned and base")
    panels[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def gaps(part: Mapping, path: Path) -> None:
    """Gain of AIG over LoRA scaling against the gap between the switch curves, a point a tuned model."""
    pyplot = plots()
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for panel, score in zip(panels, ("entropy", "diversity")):
        for row in (row for row in part["rows"] if score in row["gain"]):
            x, gain = row["gap"][score], row["gain"][score]
            error = [[gain["value"] - gain["low"]], [gain["high"] - gain["value"]]]
            panel.errorbar(x, gain["value"], error, fmt="o", color=COLOURS[2], capsize=3)
            panel.annotate(row["tuned"], (x, gain["value"]), xytext=(5, 4), textcoords="offset points", fontsize=8)
        panel.axhline(0, color="#999999", linewidth=0.8)
        panel.set(xlabel=f"gap between when reward and {score} are decided (share of the run)", ylabel=f"{score}: AIG above LoRA scaling")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def plots():
    """Matplotlib's pyplot, writing the same SVG for the same numbers."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"svg.hashsalt": "aig", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    return pyplot
