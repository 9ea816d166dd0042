"""``python -m tests.front.tables``: what the page's JavaScript must answer, as the Python that it mirrors answers it.

The tables are files, so that ``node --test`` reads them without Python; ``test_tables.py`` says when they are out of date.
"""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aig.method import schedules
from aig.ui.parts import curve

FOLDER = Path(__file__).parent
PLACES = 16  # shares are compared at 0/16 to 16/16 of the progress

ODD = [
    " POWER_2.0 ", "\x1flinear\x85", "constant_1e-5", "constant_.5", "step_1.", "points: 0 ,0; .5,5e-7;1,1",
    "points:0,0;0.5,1e-320;0.6,1e-310;1,1", "points:0,0;0.0001,1;1,0",
]  # fmt: skip
REFUSED = [
    "", "_", "power", "power_", "power_nan", "power_0", "power_101", "power_2_3", "power_1_0", "step_2", "step_-0.1",
    "constant_3.1", "sigmoid_12", "sigmoid_0_0.5", "linear_2", "points:", "points:0,0", "points:0,0;1", "points:linear",
    "points:0,0;1,2", "points:0.1,0;1,1", "points:0,0;0.5,0;0.5,1;1,1", "points:0,0;0.4,0;0.4001,1;1,1",
    "points:0,0;1,1;spline", "points:0,0;1,1; linear", "power_\uff12", "\ufefflinear", "power_1e999", "\u212aey",
    "points:" + "0,0;" * 400, "power_" + "1" * 41, "toString", "power_2\x00",
]  # fmt: skip


def drawn(rng: random.Random, most: int, straight: bool) -> str:
    """A curve through up to ``most`` inner points, gentle or wild."""
    xs = [0, *(x / 1000 for x in sorted(rng.sample(range(1, 1000), rng.randint(0, most)))), 1]
    ys = [rng.choice([0, 1, 0.5, rng.random(), rng.random() ** 9]) for _ in xs]
    return "points:" + ";".join(f"{x},{y}" for x, y in zip(xs, ys, strict=True)) + ";linear" * straight


def named(rng: random.Random) -> list[str]:
    """One schedule of every family with numbers."""
    return [
        f"power_{10 ** rng.uniform(-2, 2)}", f"step_{rng.random()}", f"constant_{rng.uniform(0, 3)}",
        f"sigmoid_{10 ** rng.uniform(-1, 2)}_{rng.random()}",
    ]  # fmt: skip


def mistyped(rng: random.Random, each: int) -> list[str]:
    """Texts with one character exchanged, of which some are schedules still, and texts of nothing but likely characters."""
    letters = "points:0,0;.51linear_power2 e-+"
    texts = ["".join(rng.choices(letters, k=rng.randint(1, 24))) for _ in range(40 * each)]
    for text in ("points:0,0;0.4,0.1;1,1", "sigmoid_12_0.5", "points:0,0;1,1;linear", "constant_0.5"):
        texts += [text[:i] + rng.choice("0123456789.;,_ e") + text[i + 1 :] for i in range(len(text)) for _ in range(each)]
    return texts


def answer(text: str) -> dict[str, object] | None:
    """The name and the shares of a schedule, None of a text that is none."""
    if not curve.is_schedule(text):
        return None
    schedule = schedules.parse(text)
    return {"name": schedule.name, "shares": [round(schedule(i / PLACES), 9) for i in range(PLACES + 1)]}


def schedules_table() -> dict[str, object]:
    rng = random.Random(0)
    texts = [*schedules.PRESETS, *ODD, *REFUSED, *mistyped(rng, 1)]
    texts += [drawn(rng, 6, bool(i % 2)) for i in range(40)] + [drawn(rng, 62, False) for _ in range(3)]
    texts += [text for _ in range(8) for text in named(rng)]
    progress = [[steps, closed] for steps in (1, 2, 7) for closed in (False, True)]
    return {
        "limits": curve.LIMITS,
        "presets": list(schedules.PRESETS),
        "schedules": [[text, answer(text)] for text in dict.fromkeys(texts)],
        "progress": [[steps, closed, list(schedules.shares("linear", steps, closed=closed))] for steps, closed in progress],
    }


def png(text: str | None) -> bytes:
    """A small picture with settings inside, or without."""
    buffer, info = io.BytesIO(), PngInfo()
    if text is not None:
        info.add_text("aig", text)
    Image.new("RGB", (8, 8)).save(buffer, "png", pnginfo=info)
    return buffer.getvalue()


def pictures_table() -> list[list[str]]:
    """(a file in base64, the settings in it)."""
    return [[base64.b64encode(png(text)).decode(), text or ""] for text in ("v1!seed=7!prompt=a+robot", "v1!prompt=~C3~A9", None)]


TABLES = {"schedules.json": schedules_table, "pictures.json": pictures_table}


def written(table: object) -> str:
    return json.dumps(table, separators=(",", ":")).replace("],[", "],\n[") + "\n"


if __name__ == "__main__":
    for name, make in TABLES.items():
        (FOLDER / name).write_text(written(make()))
