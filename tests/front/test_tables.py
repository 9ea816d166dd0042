"""The tables that the page's JavaScript is tested with are those of today's Python, and many more schedules are computed alike."""

from __future__ import annotations

import json
import random
import shutil
import subprocess

import pytest

from aig.method import schedules
from aig.ui.parts import curve
from tests.front import tables


@pytest.mark.parametrize("name", tables.TABLES)
def test_the_tables_are_up_to_date(name):
    assert (tables.FOLDER / name).read_text() == tables.written(tables.TABLES[name]()), "run: python -m tests.front.tables"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_browser_and_the_server_compute_the_same_schedules_and_refuse_the_same_texts():
    rng = random.Random(1)
    texts = [tables.drawn(rng, 62, bool(i % 2)) for i in range(400)] + tables.mistyped(rng, 8)
    texts += [text for _ in range(100) for text in tables.named(rng)]
    asked = json.dumps({"texts": texts, "limits": curve.LIMITS})
    done = subprocess.run(["node", tables.FOLDER / "answers.js"], input=asked, capture_output=True, text=True, check=True)
    worst, refused = 0.0, 0
    for text, answer in zip(texts, json.loads(done.stdout), strict=True):
        assert (answer is not None) == curve.is_schedule(text), text
        if answer is None:
            refused += 1
            continue
        schedule = schedules.parse(text)
        assert answer["name"] == schedule.name
        worst = max(worst, *(abs(share - schedule(i / 256)) for i, share in enumerate(answer["shares"])))
    assert worst < 1e-6
    assert refused > 100 and len(texts) - refused > 830  # some of the mistyped ones are schedules still
