"""Published models end to end: tiny ones of every family, on the disk as if fetched, through the engine that serves the page."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import weakref

import numpy as np
import pytest

from aig.method import adapters
from aig.published import downloads, offers, pipelines, presets, scorers
from aig.runs.engine import Engine, RunFailed
from aig.runs.plan import Plan
from aig.runs.request import Request
from tests import checkpoints, families
from tests.serving import tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FAMILIES = ("sd", "sdxl", "sd3", "flux-schnell", "pixart", "sana")
JUDGES = ("pickscore", "clip", "dinov2", "aesthetics")


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Folders of models below an operator's root, and rewards where downloads lie."""
    root = tmp_path_factory.mktemp("disk")
    for family in FAMILIES:
        families.save(family, root / "models" / family)
    for name in JUDGES:
        built = checkpoints.build(name, root / "built" / name)
        for repo, revision, file in scorers.files(name):
            home = root / "store" / repo.replace("/", "--")
            place = home / (revision or COMMIT) / file
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.write_bytes((built / file).read_bytes())
                (home / "revisions.json").write_text(json.dumps({revision or "main": revision or COMMIT}))
            sizes = {path.name: path.stat().st_size for path in place.parent.iterdir() if path.name != "aig-files.json"}
            (place.parent / "aig-files.json").write_text(json.dumps(sizes))
    return root


@pytest.fixture(autouse=True)
def allowed(disk, monkeypatch):
    monkeypatch.setenv("AIG_MODELS", str(disk / "models"))
    monkeypatch.setenv("AIG_STORE", str(disk / "store"))


def own(family: str, kind: str = "lora", **changes: str) -> str:
    source = families.source(kind)
    form = {"pipeline": type(families.build(family)).__name__, "base": f"./{family}", "kind": kind, "tuned": f"./{family}"}
    form |= {"weight_name": source.weight_name, "subfolder": source.subfolder}
    return offers.own_name([(form | changes).get(field, "") for field in offers.FORM])


@pytest.fixture
def engine(make_pipe, lora_file):
    engine = Engine(lambda: tiny_model(make_pipe(), lora_file), offers.finder((), own=True))
    yield engine
    engine.close()


def run(engine, name: str, **changes: object):
    facts = engine.facts(name)
    size = {"prompt": "a b", "images": 2, "steps": 3, "guidance": 2.0, "closed": True}
    request = Request(**size | {"model": name, "tuning": next(iter(facts.tunings))} | changes)
    *_, update = engine.stream(request)
    return update


@pytest.fixture
def tiny(monkeypatch):
    """Makes models of one's own as small as those of a family."""

    def sized(family: str) -> None:
        make = presets.own

        def made(**form: str) -> presets.Preset:
            small = {"size": families.size(family), "rewards": ("pickscore", "clip"), "held_out": "clip", "features": "dinov2"}
            return dataclasses.replace(make(**form), **small)

        monkeypatch.setattr(presets, "own", made)

    return sized


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_through_the_engine_with_published_rewards(engine, family, tiny):
    tiny(family)
    update = run(engine, own(family), columns=("lora:0.5", "step:0.5"))
    side = families.size(family)
    assert update.state == "done" and update.images.shape == (5, 2, side, side, 3)
    assert list(update.scores.columns[0].rewards) == ["pickscore", "clip"] == list(update.plan.judges)
    assert (update.images[0] != update.images[1]).any() and (update.images[1] != update.images[3]).any()
    assert update.rows == update.plan.cost


def test_a_whole_second_denoiser_and_switching_models_frees_what_was_there(engine, tiny):
    tiny("sd")
    reference = run(engine, "").images
    first, second = own("sd"), own("sd", "denoiser")
    before = run(engine, first).images
    denoiser = weakref.ref(engine._model.pipe.unet)
    assert (run(engine, second).images[1] != before[1]).any()
    gc.collect()
    assert denoiser() is None or next(denoiser().parameters()).device.type == "meta"  # whoever holds it holds no weights
    assert (run(engine, first).images == before).all()
    assert (run(engine, "").images == reference).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "./nothing"}, "no folder './nothing'"),
        ({"tuned": "./sdxl"}, "belongs to no linear or convolution layer|has the shape"),
        ({"pipeline": "StableDiffusionXLPipeline"}, "StableDiffusionPipeline"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_line_and_the_app_goes_on(engine, tiny, changes, said):
    tiny("sd")
    reference = run(engine, "").images
    with pytest.raises(RunFailed, match=said) as failure:
        run(engine, own("sd", **changes))
    assert "\n" not in str(failure.value)
    assert (run(engine, "").images == reference).all()


def test_a_reward_that_is_not_to_be_had_is_told_in_one_line(engine, tiny, monkeypatch, tmp_path):
    tiny("sd")
    monkeypatch.setenv("AIG_STORE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(RunFailed, match="cannot be reached") as failure:
        run(engine, own("sd"))
    assert "\n" not in str(failure.value)
    assert run(engine, "").state == "done"


def test_what_is_not_pinned_is_compared_with_its_checksum_wherever_it_lies(monkeypatch):
    folders = offers.judge_folders("aesthetics", print)
    repo, revision, file = scorers.files("aesthetics")[0]
    assert revision is None
    with pytest.raises(ValueError, match=f"{re.escape(file)} of {repo} differs from its checksum"):
        scorers.load("aesthetics", folders)
    monkeypatch.setitem(scorers.SHA256, (repo, file), downloads.digest(folders[repo] / file))
    scorers.load("aesthetics", folders)


@pytest.mark.parametrize("mode", ["fused", "switched"])
def test_compiled_models_make_the_same_images(engine, make_pipe, lora_file, tiny, monkeypatch, mode):
    """AIG, both ends and a scale between them, in batches of several sizes."""
    tiny("sd")
    monkeypatch.setattr(pipelines, "free_bytes", lambda device: 10**12 if mode == "fused" else 0)
    compiled = Engine(lambda: tiny_model(make_pipe(), lora_file), offers.finder((), own=True, backend="aot_eager"))
    try:
        first, second = (run(each, own("sd"), columns=("lora:0.5", "step:0.5")) for each in (engine, compiled))
        block = compiled._model.pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0]
        assert block._compiled_call_impl and len(adapters.lora_layers(block)) == (0 if mode == "fused" else 6)
    finally:
        compiled.close()
    assert np.abs(first.images.astype(int) - second.images).max() <= 1


@pytest.mark.parametrize(
    "form",
    [
        ("os.system", "./sd", "", "lora", "./sd-lora", "", "a.safetensors", ""),
        ("StableDiffusionPipeline", "../sd", "", "lora", "./sd-lora", "", "a.safetensors", ""),
        ("StableDiffusionPipeline", "/etc", "", "lora", "./sd-lora", "", "a.safetensors", ""),
        ("StableDiffusionPipeline", "https://example.org/sd", "", "lora", "./sd-lora", "", "a.safetensors", ""),
        ("StableDiffusionPipeline", "./sd", "", "pickle", "./sd-lora", "", "a.safetensors", ""),
        ("StableDiffusionPipeline", "./sd", "", "lora", "./sd-lora", "", "../a.safetensors", ""),
        ("StableDiffusionPipeline", "./sd", "", "lora", "./sd-lora", "", "a.bin", ""),
        ("StableDiffusionPipeline", "./sd", "", "lora", "", "", "a.safetensors", ""),
        ("StableDiffusionPipeline", "./sd", "", "lora", "a,b", "", "a.safetensors", ""),
    ],
)
def test_a_form_that_names_no_model_is_refused_in_one_sentence(form):
    with pytest.raises(ValueError) as refusal:
        offers.own_name(form)
    assert "\n" not in str(refusal.value)


def test_own_models_only_where_the_operator_allows_them():
    with pytest.raises(ValueError, match="choose one of: portraits, sd15"):
        offers.finder(("sd15",))(own("sd"))


@pytest.mark.parametrize("name", offers.tuned_presets())
def test_the_facts_of_a_preset_allow_its_own_defaults(name):
    facts = offers.offer(presets.load(name)).facts
    for tuning in facts.tunings:
        request = Request(tuning=tuning, model=name, **facts.defaults)
        plan = Plan.of(request, facts)
        assert plan.steps == facts.defaults["steps"] and facts.judges(tuning)
        assert "Licence" in facts.about and "Licence" in facts.notes[tuning]


def test_presets_are_offered_where_their_weights_fit():
    assert offers.fitting(0) == () and offers.fitting(10**15) == offers.tuned_presets()
    few = offers.fitting(int(presets.load("sd15").memory * 1e9) + 1)
    assert "sd15" in few and "sdxl" not in few


@pytest.mark.parametrize(
    ("text", "names"), [("sdxl, sd15", ("sdxl", "sd15")), ("none", ()), ("all", offers.tuned_presets()), ("", ()), (None, ())]
)
def test_an_operator_chooses_presets(text, names, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert offers.chosen(text) == names


@pytest.mark.parametrize("text", ["sdxxl", "sdxl,", "flux-schnell"])  # the last has no tuned weights
def test_a_preset_that_cannot_be_compared_is_refused(text):
    with pytest.raises(ValueError, match="with tuned weights; choose among: all, none, "):
        offers.chosen(text)
