"""The recorded runs of the example prompts, the first of which the page opens on: made once through the engine, shown without a model."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aig.assets import ASSETS
from aig.measures.intervals import Interval
from aig.measures.scores import Attribute, ColumnScores, Scores
from aig.runs import links, models
from aig.runs.comparison import Comparison, Update
from aig.runs.facts import Facts
from aig.runs.plan import Plan
from aig.runs.request import Request

EXAMPLES = (
    "a person with glasses",
    "an avataaars portrait",
    "a robot on a yellow background",
    "a micah portrait with red hair",
    "a sad person with long hair",
    "",
)
FOLDER = ASSETS / "replay"
MOVING = ASSETS / "screenshots" / "denoising.webp"  # the first example, for the README
MANIFEST = ASSETS / "portraits" / "manifest.json"
REMEDY = "run: python -m aig replay"


def place(prompt: str) -> Path:
    """The file of the recorded run of an example."""
    return FOLDER / f"{re.sub('[^a-z]+', '-', prompt) or 'anything'}.json"


def opening(facts: Facts, prompt: str = EXAMPLES[0]) -> Request:
    """What an example shows, by default what the page opens on, for the model with these facts."""
    settings: dict[str, Any] = {"kl": facts.tunings[Request.tuning][0], **facts.defaults}
    return Request(prompt=prompt, **settings)


def digest(manifest: Path = MANIFEST) -> str:
    """SHA-256 of a model's manifest, and so of all its weights."""
    return hashlib.sha256(manifest.read_bytes()).hexdigest()


def record(load: Callable[[], models.Model], request: Request) -> tuple[Update, ...]:
    """Every step of a run, the result last."""
    model = load()
    job = Comparison(plan=Plan.of(request, model.facts), preview_share=math.inf)
    return tuple(update for update in job.run(model) if update is not None and update.images is not None)


def dump(updates: Sequence[Update], model: str) -> str:
    """A recording as JSON text; ``model`` is the digest of the model that made it."""
    request, final = updates[0].plan.request, updates[-1]
    content = {
        "model": model,
        "run": links.encode(request),
        "updates": [_item(update, lossless=update is final) for update in updates],
    }
    return json.dumps(content, separators=(",", ":")) + "\n"


def load(path: Path, facts: Facts, model: str | None = None) -> tuple[Update, ...]:
    """The updates of a recording of the model with these facts and the digest ``model``, by default the shipped one's.

    ValueError with the command that mends it when the recording is missing, broken or of another model.
    """
    try:
        content = json.loads(path.read_text())
        if content["model"] != (model or digest()):
            raise ValueError(f"The recorded run {path.name!r} is of another model; {REMEDY}")
        request = links.decode(content["run"])
        plan = Plan.of(request, facts)
        updates = tuple(_update(item, plan) for item in content["updates"])
    except FileNotFoundError as problem:
        raise ValueError(f"There is no recorded run {path.name!r}; {REMEDY}") from problem
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, IndexError, OSError, binascii.Error) as problem:
        raise ValueError(f"The recorded run {path.name!r} is broken; {REMEDY}") from problem
    if [update.step for update in updates] != list(range(1, plan.steps + 1)):
        raise ValueError(f"The recorded run {path.name!r} lacks steps; {REMEDY}")
    return updates


def _item(update: Update, *, lossless: bool) -> dict:
    assert update.scores is not None and update.images is not None  # ``record`` keeps no others
    return {
        "step": update.step,
        "rows": update.rows,
        "seconds": round(update.seconds, 3),
        "scores": _rounded(update.scores.to_json()),
        "pictures": [_packed(images, lossless=lossless) for images in update.images],
    }


def _update(item: Mapping, plan: Plan) -> Update:
    return Update(
        state="done" if item["step"] == plan.steps else "running",
        plan=plan,
        step=item["step"],
        images=np.stack([_unpacked(picture, plan.request.images) for picture in item["pictures"]]),
        scores=_scores(item["scores"]),
        rows=item["rows"],
        seconds=item["seconds"],
    )


def _packed(images: np.ndarray, *, lossless: bool) -> str:
    """(N, H, W, 3) uint8 as one strip of cells in WebP, base64."""
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(images)).save(buffer, "webp", quality=90, method=6, lossless=lossless)
    return base64.b64encode(buffer.getvalue()).decode()


def _unpacked(picture: str, images: int) -> np.ndarray:
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture, validate=True))).convert("RGB"))
    return strip.reshape(images, -1, *strip.shape[1:])


def _scores(content: Mapping[str, Any]) -> Scores:
    def intervals(known: Mapping) -> dict[str, Interval]:
        return {name: Interval(**interval) for name, interval in known.items()}

    def column(known: Mapping[str, Any]) -> ColumnScores:
        read: dict[str, Any] = {
            "rewards": intervals(known["rewards"]),
            "deltas": intervals(known["deltas"]),
            "diversity": Interval(**known["diversity"]),
            "attributes": {name: Attribute(**attribute) for name, attribute in known["attributes"].items()},
        }
        return ColumnScores(**{**known, **read})

    read: dict[str, Any] = {**content, "columns": tuple(map(column, content["columns"]))}
    return Scores(**read)


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value
