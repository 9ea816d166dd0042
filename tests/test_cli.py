"""The command line: bad input gives one sentence and exit code 2, and no file."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from aig import __main__ as cli
from aig.portraits import serving
from aig.runs import columns, export, links
from aig.runs.request import Request
from tests.serving import tiny_model


@pytest.fixture
def tiny(monkeypatch, pipe, lora_file):
    monkeypatch.setattr(serving, "load", lambda: tiny_model(pipe, lora_file))


def test_compare_writes_the_grids_with_their_settings_and_prints_a_table(tiny, tmp_path, capsys):
    out = tmp_path / "grid.png"
    code = cli.main(["compare", "a b", "--images", "2", "--steps", "3", "--schedule", "linear", "--out", str(out)])
    assert code == 0
    settings = links.decode(export.settings_of(out.read_bytes()))
    assert settings == Request(prompt="a b", images=2, steps=3, schedule="linear")
    assert "Reward-tuned" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]


def test_json_is_the_only_thing_on_standard_output(tiny, capsys):
    assert cli.main(["compare", "a", "--images", "2", "--steps", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [column["name"] for column in printed["columns"]] == ["Base", "Reward-tuned", "AIG"]


def test_columns_are_added_and_listed(tiny, tmp_path, capsys):
    out = tmp_path / "grid.png"
    asked = ["--column", "lora:0.5", "--column", "code:2", "--images", "2", "--steps", "3", "--out", str(out)]
    assert cli.main(["compare", "a b", *asked]) == 0
    printed = capsys.readouterr().out
    assert "LoRA scale 0.5" in printed and "CoDe 2" in printed
    assert links.decode(export.settings_of(out.read_bytes())).columns == ("lora:0.5", "code:2")
    assert cli.main(["columns"]) == 0
    listed = capsys.readouterr().out
    for kind in columns.KINDS.values():
        assert kind.form in listed and kind.rule in listed and kind.source in listed and kind.cost in listed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--schedule", "power_x"], "power_x"),
        (["--images", "0"], "0"),
        (["--images", "17"], "17"),
        (["--guidance", "nan"], "nan"),
        (["--lora-scale", "9"], "9"),
        (["--kl", "0.3"], "0.3"),
        (["--steps", "1000"], "1000"),
        (["--column", "lora:9"], "lora:9"),
        (["--column", "lora:0.5", "--column", "lora:.5"], "twice"),
        (["--out", "/nowhere/at/all/grid.png"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(tiny, tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    where = [] if "--out" in arguments else ["--out", "grid.png"]
    assert cli.main(["compare", "a", *arguments, *where]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_is_no_number_exits_with_2():
    done = subprocess.run([sys.executable, "-m", "aig", "compare", "--images", "many"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_schedules_are_listed(capsys):
    assert cli.main(["schedules", "--steps", "4"]) == 0
    assert "power_2          0.00 0.06 0.25 0.56" in capsys.readouterr().out


def test_a_picture_without_settings_is_refused():
    plain = export.grids(np.zeros((1, 1, 8, 8, 3), np.uint8), ["Base"], ["x"], "v1!seed=1")
    assert export.settings_of(plain) == "v1!seed=1"
    with pytest.raises(ValueError, match="no settings"):
        export.settings_of(b"not a picture")
