"""Stage ``ship``: pack what was trained into ``assets/portraits``: half precision, files under 10 MB, a SHA-256 manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from aig.assets import ASSETS
from aig.world.draft import SHIPPED
from aig.world.presets import World

SHARD = "9MB"


def run(preset: World, *, assets: Path = ASSETS) -> Iterator[dict[str, float]]:
    """Replace the asset folder's weights; card and evaluation stay."""
    folder = assets / "portraits"
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "loras", "rewards"):
        shutil.rmtree(folder / old, ignore_errors=True)
    pipe = StableDiffusionPipeline.from_pretrained(preset.work / "pipeline", use_safetensors=True, safety_checker=None)
    pipe.unet.half()  # the rest is small and stays in float32, where stock loading leaves it
    pipe.save_pretrained(folder, max_shard_size=SHARD)
    for config in (folder / "model_index.json", *folder.glob("*/config.json")):
        settings = json.loads(config.read_text())
        settings.pop("_name_or_path", None)  # where it was packed from is nobody's business
        config.write_text(json.dumps(settings, indent=2) + "\n")
    yield {"step": 1, "steps": 3}
    for source in ("loras", "rewards"):
        (folder / source).mkdir()
        for path in sorted((preset.work / source).glob("*.safetensors")):
            if source == "loras" and path.stem.partition("-kl-")[0] not in SHIPPED:
                continue  # those that only the evaluation needs
            half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
            save_file(half, folder / source / path.name)
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in load_file(preset.work / "ruler.safetensors").items()},
        folder / "ruler.safetensors",
    )
    yield {"step": 2, "steps": 3}
    write_manifest(folder)
    yield {"step": 3, "steps": 3}


def write_manifest(folder: Path) -> None:
    """SHA-256 of every file that is loaded."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json") and path.is_file())
    loaded = [path for path in files if path.name not in ("manifest.json", "evaluation.json")]
    digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in loaded}
    (folder / "manifest.json").write_text(json.dumps(digests, indent=1) + "\n")
