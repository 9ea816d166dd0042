"""The launched app over its public API: results, refusals, and what must not be reachable."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from aig.method import schedules
from aig.runs import columns, export, links, replay
from aig.runs.engine import Engine
from aig.runs.plan import Plan
from aig.runs.request import Request
from tests.serving import TINY, served, slowed, tiny_model

SMALL = {
    "prompt": "a person",
    "seed": 3,
    "images": 4,
    "steps": 4,
    "guidance": 3.0,
    "schedule": "power_2",
    "tuning": "preference",
    "lora_scale": 1.0,
    "kl": 0.5,
}
DRAWN = ("points:0,0;0.5,0;1,1", "points:0,1;0.5,1;1,0")


@pytest.fixture(scope="module")
def app(make_pipe, lora_file):
    """The address of the app, a client of it, and the growing list of the times at which the model was evaluated."""
    pipe = make_pipe()
    calls = slowed(pipe, 0.0)
    with served(lambda: tiny_model(pipe, lora_file)) as url:
        yield url, Client(url, verbose=False), calls


@pytest.mark.parametrize("added", [[], ["lora:0.5", "code:2", "step:0.6:unguided"]])
def test_compare_returns_what_the_engine_computes_and_one_picture(app, make_pipe, lora_file, added):
    _, client, _ = app
    scores, picture = client.predict(**SMALL, closed=True, columns=added, api_name="/compare")
    engine = Engine(lambda: tiny_model(make_pipe(), lora_file))
    try:
        *_, last = engine.stream(Request(**SMALL, closed=True, columns=added))
    finally:
        engine.close()
    expected = last.scores.to_json()
    assert scores["headline"] == expected["headline"] and scores["rows"] == last.rows
    for column, wanted in zip(scores["columns"], expected["columns"], strict=True):
        assert column["name"] == wanted["name"]
        for one, other in ((column, wanted), (column["rewards"], wanted["rewards"])):
            name = "diversity" if one is column else "preference"
            assert one[name]["value"] == pytest.approx(other[name]["value"], abs=1e-6)
    content = Path(picture).read_bytes()
    assert links.decode(export.settings_of(content)) == Request(**SMALL | {"closed": True, "columns": added})
    assert len(scores["columns"]) == 3 + len(added)
    width, height = Image.open(picture).size
    assert width > (3 + len(added)) * height / 1.8 and np.asarray(Image.open(picture)).std() > 1


def test_the_defaults_are_those_of_the_engine(app):
    url, client, _ = app
    documented = client.view_api(return_format="dict")["named_endpoints"]
    assert set(documented) == {"/compare", "/schedules", "/models", "/rewards", "/columns"}
    defaults = {p["parameter_name"]: p["parameter_default"] for p in documented["/compare"]["parameters"]}
    assert Request(**defaults) == Request(prompt=replay.EXAMPLES[0])


def test_the_listings_say_what_may_be_asked(app):
    _, client, _ = app
    models, rewards = client.predict(api_name="/models"), client.predict(api_name="/rewards")
    assert (
        models["tiny"]["tunings"] == {"preference": [0, 0.5, 2], "vivid": [0]}
        and models["tiny"]["size"] == 16
        and len(models["tiny"]["attributes"]) == 10
    )
    assert models["tiny"]["rewards"] == list(rewards) == ["preference", "vivid", "held-out"]
    kinds = client.predict(steps=4, images=2, guidance=3.0, api_name="/columns")
    assert list(kinds) == list(columns.KINDS)
    for kind in kinds.values():
        assert kind["rule"] and kind["source"] and kind["examples"]
        for text, rows in kind["examples"].items():
            assert columns.parse(text).name == text and rows >= 0
    with pytest.raises(AppError, match="steps"):
        client.predict(steps=0, images=2, guidance=3.0, api_name="/columns")


def test_schedules_lists_every_preset_with_its_shares(app):
    answer = app[1].predict(steps=7, closed=True, api_name="/schedules")
    assert list(answer["presets"]) == list(schedules.PRESETS)
    for name, shares in answer["presets"].items():
        assert shares == pytest.approx(schedules.shares(name, 7, closed=True))


@pytest.mark.parametrize("schedule", [*schedules.PRESETS, "constant_1.5", *DRAWN])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_announced_cost_is_the_cost(app, schedule, guidance):
    settings = SMALL | {"images": 2, "schedule": schedule, "guidance": guidance}
    scores, _ = app[1].predict(**settings, closed=False, api_name="/compare")
    assert Plan.of(Request(**settings), TINY).cost == scores["rows"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", None), ("prompt", 7), ("prompt", "x" * 401), ("prompt", "a\0b"), ("prompt", ["a"]),
        ("seed", 1.5), ("seed", True), ("seed", -1), ("seed", None), ("seed", 10**12), ("seed", "7"),
        ("images", 0), ("images", 17), ("images", 2.5), ("steps", 0), ("steps", 10**9), ("steps", False),
        ("guidance", -1), ("guidance", 1e9), ("guidance", "4"), ("schedule", "power"),
        ("schedule", "power_-1"), ("schedule", 3), ("schedule", "points:" + "0,0;" * 900), ("lora_scale", 9),
        ("lora_scale", None), ("kl", 0.3), ("kl", True), ("closed", 1), ("closed", "yes"),
        ("columns", None), ("columns", "lora:1"), ("columns", ["lora:9"]), ("columns", [None]), ("columns", ["<b>"]),
        ("columns", ["lora:0.1", "lora:0.2", "lora:0.3", "lora:0.4"]), ("columns", ["code:2", "code:2.0"]),
        ("prompt", "<img src=x onerror=alert(1)>" * 20),
    ],
)  # fmt: skip
def test_a_bad_payload_gets_one_sentence_and_never_reaches_the_model(app, name, value):
    _, client, calls = app
    before = len(calls)
    with pytest.raises(AppError) as refused:
        client.predict(**(SMALL | {"closed": False, name: value}), api_name="/compare")
    sentence = str(refused.value)
    assert 10 < len(sentence) < 400 and "Traceback" not in sentence and "\n" not in sentence.strip()
    assert len(calls) == before


@pytest.mark.parametrize("steps", [0, 101_000, "x", None, 2.5])
def test_schedules_refuses_bad_steps(app, steps):
    with pytest.raises(AppError, match="steps"):
        app[1].predict(steps=steps, closed=False, api_name="/schedules")


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd", "gradio_api/file=app.py", "gradio_api/file=../app.py", "gradio_api/file=assets",
        "gradio_api/monitoring/summary", "monitoring", "gradio_api/proxy=http://127.0.0.1:1/",
    ],
)  # fmt: skip
def test_nothing_else_is_served(app, path):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{app[0]}/{path}", timeout=10)
    assert 400 <= refused.value.code < 500


def test_no_call_skips_the_queue(app):
    body = json.dumps({"data": [*SMALL.values(), False, []]}).encode()
    for route in ("gradio_api/api/compare", "gradio_api/run/compare"):
        call = urllib.request.Request(f"{app[0]}/{route}", body, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(call, timeout=10)
        assert 400 <= refused.value.code < 500


@pytest.mark.skipif(importlib.util.find_spec("mcp") is not None, reason="mcp is installed")
def test_mcp_without_its_package_is_one_sentence():
    done = subprocess.run([sys.executable, "app.py", "--mcp"], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'gradio[mcp]'" in done.stderr and len(done.stderr.splitlines()) == 1


def test_scores_are_plain_json_also_for_a_single_image(app):
    scores, _ = app[1].predict(**(SMALL | {"images": 1}), closed=False, api_name="/compare")
    assert scores["columns"][0]["diversity"] is None
    assert all(math.isfinite(c["rewards"]["held-out"]["value"]) for c in scores["columns"])
