"""Stage ``figures``: the card's pictures, from the shipped weights and from what ``evaluate`` measured.

Nothing is chosen by hand: samples are those of the first seeds that ``evaluate`` uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from aig import models
from aig.export import COLOURS
from aig.world import evaluate, tradeoffs
from aig.world.autoencoder import reconstructed
from aig.world.bench import Bench, draw, features_of, load
from aig.world.data import unit
from aig.world.presets import Preset

SEEDS = tradeoffs.SEEDS[:12]
CELL, GAP, LABEL = 96, 3, 180  # pixels; the world's pictures are enlarged
LONE = {"AIG step_0.6": "x", "AIG power_2, ending at 1": "+", "AIG power_4, ending at 1": "1"}  # markers, not on the line of powers
ZOOMED = 6  # held-out drawings that are shown with their reconstructions


def run(preset: Preset, *, assets: Path = models.ASSETS) -> Iterator[dict[str, float]]:
    """Draw everything into ``figures`` of the asset folder, after ``evaluate``; yields progress."""
    bench = load(preset, assets=assets)
    folder = bench.folder / "figures"
    folder.mkdir(exist_ok=True)
    steps = 2 + 2 * len(preset.tuned_on)
    save(reconstructions(bench), folder / "reconstructions.webp", lossless=True)
    yield {"step": 1, "steps": steps}
    save(neighbours(bench), folder / "neighbours.webp")
    yield {"step": 2, "steps": steps}
    for i, reward in enumerate(preset.tuned_on):
        save(hacking(bench, reward), folder / f"hacking-{reward}.webp")
        yield {"step": 3 + 2 * i, "steps": steps}
        curves(evaluate.read(bench.folder)[f"tuned on {reward}"]["table"], preset, reward, folder / f"tradeoff-{reward}.svg")
        yield {"step": 4 + 2 * i, "steps": steps}


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


def hacking(bench: Bench, reward: str) -> Image.Image:
    """The same people at every stage of tuning without KL, beyond it, and with AIG."""
    methods, rows = tradeoffs.methods(bench, reward), {}
    wanted = ["base", *(f"after {n} updates" for n in bench.preset.checkpoints[1::2]), "KL 0", "LoRA scale 4"]
    for label in (*wanted, "KL 1", "LoRA scale 0.5", "AIG linear", "AIG power_2"):
        if label in methods:
            denoiser, shares = methods[label]
            shown = f"after {bench.preset.tuning_steps} updates" if label == "KL 0" else label
            rows[shown] = tradeoffs.pictures(bench, denoiser(), shares, SEEDS)
    return sheet(rows)


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


def curves(table: Sequence[Mapping], preset: Preset, reward: str, path: Path) -> None:
    """Rewards and entropy over updates without KL; and every method's reward against its entropy."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"svg.hashsalt": "aig", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    measured = {row["method"]: row for row in table}
    updates = [0, *preset.checkpoints, preset.tuning_steps]
    rows = [measured[m] for m in ("base", *(f"after {n} updates" for n in preset.checkpoints), "KL 0")]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for colour, name in zip(COLOURS[3:], (reward, "held-out"), strict=False):
        left.plot(updates, [row[name] for row in rows], "o-", color=colour, label=name)
    left.plot(updates, [row["entropy"] for row in rows], "s--", color=COLOURS[5], label="entropy")
    left.set(xlabel="updates without KL", ylabel="reward (std of drawings); entropy (0 to 1)")
    left.legend(frameon=False)
    for colour, name in zip(COLOURS[1:], tradeoffs.METHODS, strict=True):  # from the page's colour of the tuned model on: AIG has its own
        points = [measured[label] for label in tradeoffs.members(measured, name)]
        lone = [row for row in points if row["method"] in LONE]
        line = sorted((row for row in points if row not in lone), key=lambda row: row[reward])
        right.plot([row[reward] for row in line], [row["entropy"] for row in line], "o-", color=colour, label=name, markersize=4)
        for row in lone:
            right.plot(row[reward], row["entropy"], LONE[row["method"]], color=colour, label=row["method"], markersize=8)
    right.set(xlabel=reward, ylabel="entropy of attributes")
    right.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
