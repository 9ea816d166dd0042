"""Stage ``data``: sample attributes, draw them with DiceBear (Node), rasterise with resvg; resumable, shard by shard.

Writes ``images.npy`` (N, size, size, 3) uint8 and ``labels.npy`` (N, len(ATTRIBUTES)) uint8; the last ``held_out`` rows are
never trained on.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aig.portraits.population import draw_options, encode, sample_attributes
from aig.world.presets import World

SHARD = 2_000


def rasterise(svg: str, size: int) -> np.ndarray:
    """An SVG text as (size, size, 3) uint8."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def draw_shard(index: int, *, count: int, size: int, seed: int, node: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one shard; a pure function of its arguments."""
    rng = np.random.default_rng((seed, index))
    people = [sample_attributes(rng) for _ in range(count)]
    lines = "\n".join(json.dumps(draw_options(person, f"{seed}-{index}-{i}")) for i, person in enumerate(people))
    drawn = subprocess.run(["node", "draw.mjs"], cwd=node, input=lines, capture_output=True, text=True, check=True)
    images = np.stack([rasterise(json.loads(line), size) for line in drawn.stdout.splitlines()])
    return images, np.array([encode(person) for person in people], dtype=np.uint8)


def install_node(folder: Path) -> Path:
    """A folder with the drawing script and its packages."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("draw.mjs", "package.json"):
        shutil.copy(Path(__file__).with_name(name), folder / name)
    if not (folder / "node_modules").is_dir():
        subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return folder


def _write_shard(index: int, *, folder: Path, **settings) -> None:
    images, labels = draw_shard(index, **settings)
    partial_path = folder / f"{index:04d}.partial.npz"
    np.savez_compressed(partial_path, images=images, labels=labels)
    partial_path.rename(folder / f"{index:04d}.npz")  # a killed run leaves no half shard


def make(preset: World) -> Iterator[dict[str, float]]:
    """Draw all shards, yielding progress after each."""
    node = install_node(preset.work / "node")
    shards = preset.work / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    total = preset.drawings + preset.held_out
    count = min(SHARD, total)
    indices = range(-(-total // count))
    todo = [i for i in indices if not (shards / f"{i:04d}.npz").exists()]
    draw = partial(_write_shard, folder=shards, count=count, size=preset.size, seed=preset.seed, node=node)
    with ProcessPoolExecutor(2) as pool:
        for done, _ in enumerate(pool.map(draw, todo), start=1):
            yield {"step": len(indices) - len(todo) + done, "steps": len(indices)}
    parts = [np.load(shards / f"{i:04d}.npz") for i in indices]
    for name in ("images", "labels"):
        np.save(preset.work / f"{name}.npy", np.concatenate([part[name] for part in parts])[:total])


def load(preset: World) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of all drawings, held-out ones last."""
    missing = [name for name in ("images.npy", "labels.npy") if not (preset.work / name).exists()]
    if missing:
        raise FileNotFoundError(f"{preset.work} has no {missing[0]}; run: python -m aig.world data --preset {preset.name}")
    return np.load(preset.work / "images.npy"), np.load(preset.work / "labels.npy")


def unit(images: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [0, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float().div(255)


def batches(images: np.ndarray, size: int = 250) -> Iterator[torch.Tensor]:
    """Drawings (N, H, W, 3) uint8 as images (B, 3, H, W) in [0, 1], so many at once."""
    return (unit(images[i : i + size]) for i in range(0, len(images), size))
