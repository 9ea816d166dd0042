"""Published rewards on tiny random checkpoints in the authors' formats, against naive forwards in their layouts."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import BertTokenizer, CLIPModel, CLIPTokenizer, Dinov2Model

from aig.published import rewards, scorers, towers
from aig.published.pixels import Recipe, prepare
from tests import checkpoints

PROMPTS = ["a cat", "", "a red fox that jumps over a very lazy dog and sleeps", "a cat"]
LONG = PROMPTS[2]
CROP = Recipe(size=checkpoints.SIDE, edge=checkpoints.SIDE, fit="round")
PICKLED = {"hpsv2": "HPS_v2.1_compressed.pt", "imagereward": "ImageReward.pt", "aesthetics": towers.AESTHETICS_HEAD}


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder of tiny weights for each reward and feature model."""
    base = tmp_path_factory.mktemp("published")
    return {name: checkpoints.build(name, base / name) for name in scorers.FILES}


@pytest.fixture(scope="session")
def loaded(folders) -> dict[str, scorers.Scorer]:
    return {name: scorers.load(name, folders[name]) for name in scorers.SCORERS}


@pytest.fixture
def copied(folders, tmp_path):
    """Copies a folder, so that a test may damage it."""
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    """Smooth pictures of an odd size, (4, 3, 41, 50) in [0, 1]."""
    coarse = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(3))
    return F.interpolate(coarse, (41, 50), mode="bilinear")


def clip_ids(folder: Path, padding: int | None = None) -> torch.Tensor:
    """Tokens of PROMPTS (4, LENGTH), by the stock tokenizer, padded with the end of text or another number."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    out = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=checkpoints.LENGTH, return_tensors="pt")
    return out.input_ids if padding is None else out.input_ids.masked_fill(out.attention_mask == 0, padding)


def stock_logits(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """The diagonal of CLIPModel's own logits (4,)."""
    model = CLIPModel.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        return model.eval()(input_ids=clip_ids(folder), pixel_values=pixels).logits_per_image.diagonal()


def test_pickscore_is_the_logit_of_the_stock_model(folders, loaded, images):
    expected = stock_logits(folders["pickscore"], prepare(images, Recipe(size=28, edge=28, fit="floor")))
    assert torch.allclose(loaded["pickscore"](images, PROMPTS), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.5


def test_clip_is_two_and_a_half_times_the_positive_part_of_the_cosine(folders, loaded, images):
    scale = load_file(folders["clip"] / "model.safetensors")["logit_scale"].exp()
    pictures, words = images.repeat(2, 1, 1, 1), PROMPTS + PROMPTS
    pictures[4:] = 1 - pictures[4:]
    cosines = torch.cat([stock_logits(folders["clip"], prepare(part, CROP)) / scale for part in pictures.split(4)])
    assert torch.allclose(loaded["clip"](pictures, words), 2.5 * cosines.clamp(min=0), atol=1e-5)
    assert cosines.min() < 0 < cosines.max()


def test_hpsv2_is_the_cosine_of_open_clips_own_layout(folders, loaded, images):
    weights = torch.load(folders["hpsv2"] / PICKLED["hpsv2"], weights_only=True)["state_dict"]
    naive = checkpoints.OpenClip(len(json.loads((folders["hpsv2"] / "vocab.json").read_text()))).eval()
    naive.load_state_dict({name: value.float() for name, value in weights.items()})
    with torch.no_grad():  # open_clip pads with 0
        expected = naive(prepare(images, Recipe(size=28, edge=28, fit="pad")), clip_ids(folders["hpsv2"], padding=0))
    assert torch.allclose(loaded["hpsv2"](images, PROMPTS), expected, atol=1e-5)
    assert expected.std() > 0.05


def test_imagereward_is_blips_own_layout(folders, loaded, images):
    naive = checkpoints.Blip().eval()
    naive.load_state_dict(torch.load(folders["imagereward"] / "ImageReward.pt", weights_only=True), strict=False)
    tokenizer = BertTokenizer.from_pretrained(folders["imagereward"])
    words = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    with torch.no_grad():
        raw = naive(prepare(images, CROP), words.input_ids, words.attention_mask)
    expected = (raw - 0.16717362830052426) / 1.0333394966054072
    assert torch.allclose(loaded["imagereward"](images, PROMPTS), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.05 and words.input_ids.shape == (4, 35)


def test_aesthetics_is_the_head_on_the_normalised_embedding(folders, loaded, images):
    folder = folders["aesthetics"]
    mlp = checkpoints.Mlp(16).eval()
    mlp.load_state_dict(torch.load(folder / PICKLED["aesthetics"], weights_only=True))
    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        embedding = model.visual_projection(model.vision_model(pixel_values=prepare(images, CROP)).pooler_output)
        expected = mlp(embedding / embedding.norm(dim=1, keepdim=True)).squeeze(1)
    assert torch.allclose(loaded["aesthetics"](images, PROMPTS), expected, atol=1e-4)
    assert torch.equal(loaded["aesthetics"](images, PROMPTS), loaded["aesthetics"](images, [LONG] * 4))


@pytest.mark.parametrize("name", scorers.SCORERS)
def test_slope_reaches_the_pixels_and_is_that_of_finite_differences(name, loaded, images):
    reward, words = loaded[name], PROMPTS[:2]
    image = (0.3 + 0.4 * images[:2]).requires_grad_(True)
    score = reward(image, words)
    score.sum().backward()
    assert score.shape == (2,) and score.dtype == torch.float32
    assert torch.isfinite(image.grad).all() and (image.grad != 0).float().mean((1, 2, 3)).max() > 0.5  # clip: 0 below 0
    along = image.grad.sign()
    step = 2e-4
    with torch.no_grad():
        rise = (reward(image + step * along, words) - reward(image - step * along, words)).sum() / (2 * step)
    assert float(rise) == pytest.approx(float((image.grad * along).sum()), rel=0.03)
    assert all(not parameter.requires_grad for parameter in reward.parameters()) and not reward.training


@pytest.mark.parametrize("name", scorers.SCORERS)
def test_chunks_give_the_same_values_and_slopes(name, loaded, images, monkeypatch):
    def scored():
        image = images.clone().requires_grad_(True)
        score = loaded[name](image, PROMPTS)
        score.sum().backward()
        return score.detach(), image.grad

    whole, slope = scored()
    monkeypatch.setattr(towers, "CHUNK", 3)
    parts, slope_of_parts = scored()
    assert torch.allclose(whole, parts, atol=1e-5)
    assert torch.allclose(slope, slope_of_parts, atol=1e-5 * float(slope.abs().max()))
    with torch.no_grad():
        assert torch.allclose(loaded[name](images, PROMPTS), whole, atol=1e-5)


def test_slopes_of_many_images_keep_one_chunk_in_memory(loaded, images, monkeypatch):
    """What autograd keeps grows by the images alone: towers run again, chunk by chunk, on the way back."""

    def kept(count: int) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            loaded["pickscore"](images[:1].expand(count, -1, -1, -1).clone().requires_grad_(True), ["a"] * count)
        return sum(sizes)

    whole = kept(4)
    monkeypatch.setattr(towers, "CHUNK", 2)
    assert kept(4) == images.numel() < whole


def test_prompts_are_tokenised_once_cut_and_may_be_empty(folders, images):
    reward = scorers.load("pickscore", folders["pickscore"])
    scores = reward(images, PROMPTS)
    reward(images, PROMPTS)
    info = reward.tokens.cache_info()
    assert info.misses == 3  # distinct prompts
    assert len(reward.tokens(LONG)) == checkpoints.LENGTH and reward.tokens(LONG)[-1] == reward.padding
    longer = reward(images, [*PROMPTS[:2], LONG + " for a thousand years" * 50, PROMPTS[3]])
    assert torch.allclose(longer, scores, atol=1e-5)
    alone = torch.cat([reward(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(4)])
    assert torch.allclose(alone, scores, atol=1e-5)


@pytest.mark.parametrize("name", scorers.SCORERS)
def test_half_precision_weights_give_float32_scores_nearby(name, folders, loaded, images):
    reward = scorers.load(name, folders[name], dtype=torch.bfloat16)
    found, expected = reward(images.bfloat16(), PROMPTS), loaded[name](images, PROMPTS)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.1 * max(1, expected.abs().max())
    assert {p.dtype for p in reward.parameters()} <= {torch.bfloat16, torch.float32}


def test_features_are_those_of_the_stock_towers(folders, images):
    features = scorers.load_features("dinov2", folders["dinov2"])
    stock = Dinov2Model.from_pretrained(folders["dinov2"], local_files_only=True).eval()
    with torch.no_grad():
        expected = stock(pixel_values=prepare(images, features.recipe)).last_hidden_state[:, 0]
    found = features(images.clone().requires_grad_(True))
    assert torch.allclose(found, expected, atol=1e-5) and not found.requires_grad and found.dtype == torch.float32
    clip = scorers.load_features("clip", folders["clip"])(images)
    stock = CLIPModel.from_pretrained(folders["clip"], local_files_only=True).eval()
    with torch.no_grad():
        expected = stock.visual_projection(stock.vision_model(pixel_values=prepare(images, CROP)).pooler_output)
    assert torch.allclose(clip, expected, atol=1e-5) and clip.shape == (4, 16)


@pytest.mark.parametrize("bad", [torch.rand(3, 8, 8), torch.rand(2, 1, 8, 8)])
def test_images_of_another_shape_are_refused(bad, loaded):
    with pytest.raises(ValueError, match=r"shape \(B, 3, H, W\)"):
        loaded["clip"](bad, ["a"] * len(bad))


@pytest.mark.parametrize("prompts", ["ab", ["a"], []])
def test_prompts_must_be_as_many_as_images(prompts, loaded, images):
    with pytest.raises(ValueError, match="one prompt for each of 2 images"):
        loaded["clip"](images[:2], prompts)
    assert loaded["clip"](images[:0], []).shape == (0,)


# What is read


def test_the_table_lists_every_file_and_what_is_not_pinned(folders):
    for name, folder in folders.items():
        assert sorted(file for _, _, file in scorers.files(name)) == sorted(path.name for path in folder.iterdir())
    entries = {entry for name in scorers.FILES for entry in scorers.files(name)}
    unpinned = {(repo, file) for repo, revision, file in entries if revision is None}
    assert unpinned == {("camenduru/improved-aesthetic-predictor", "sac+logos+ava1-l14-linearMSE.pth")}
    assert all(revision is None or re.fullmatch("[0-9a-f]{40}", revision) for _, revision, _ in entries)
    weights = {(repo, file) for repo, _, file in entries if not file.endswith((".json", ".txt"))}
    unchecked = {("yuvalkirstain/PickScore_v1", "model.safetensors"), ("THUDM/ImageReward", "ImageReward.pt")}
    assert weights - set(scorers.SHA256) == unchecked and set(scorers.SHA256) <= weights
    assert unpinned <= set(scorers.SHA256)  # what no revision pins, a checksum does


def test_a_folder_for_each_repository_will_do(folders, tmp_path, images, loaded):
    places = {}
    for repo, _, file in scorers.files("hpsv2"):
        places[repo] = tmp_path / repo.replace("/", "--")
        places[repo].mkdir(exist_ok=True)
        shutil.copy(folders["hpsv2"] / file, places[repo])
    assert torch.equal(scorers.load("hpsv2", places)(images, PROMPTS), loaded["hpsv2"](images, PROMPTS))
    places.popitem()
    with pytest.raises(ValueError, match="needs a folder for"):
        scorers.load("hpsv2", places)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["inside", "instead", "bare"])
@pytest.mark.parametrize("name", [*PICKLED, "pickscore"])
def test_no_pickle_runs_code(name, form, copied, tmp_path):
    folder, marker = copied(name), tmp_path / "marker"
    path = folder / PICKLED.get(name, "model.safetensors")
    if form == "bare":
        path.write_bytes(pickle.dumps(Evil(marker)))
    else:
        torch.save({"state_dict": {"visual.proj": Evil(marker)}} if form == "inside" else Evil(marker), path)
    with pytest.raises(ValueError) as error:
        scorers.load(name, folder)
    assert one_sentence(error) and path.name in str(error.value) and not marker.exists()
    with path.open("rb") as stream:
        pickle.load(stream) if form == "bare" else torch.load(stream, weights_only=False)
    assert marker.exists()  # it is live ammunition


def one_sentence(error) -> bool:
    message = str(error.value)
    return "\n" not in message and message.endswith(".") and len(message) < 300


HOSTILE = {
    "an integer tensor": lambda weights: weights | {"layers.0.bias": torch.arange(20)},
    "a nested table": lambda weights: {"layers": weights},
    "a number": lambda weights: weights | {"epoch": 3},
    "a number for a name": lambda weights: weights | {7: torch.zeros(2)},
    "a sparse tensor": lambda weights: weights | {"layers.0.bias": torch.zeros(20).to_sparse()},
    "terabytes of one number": lambda weights: weights | {"layers.0.bias": torch.zeros(1).expand(10**12)},
    "a list": lambda weights: list(weights.values()),
    "no tensor": lambda weights: {},
    "NaN": lambda weights: weights | {"layers.7.bias": torch.tensor([torch.nan])},
    "a missing layer": lambda weights: {k: v for k, v in weights.items() if k != "layers.4.bias"},
    "a layer of another shape": lambda weights: weights | {"layers.2.weight": torch.zeros(12, 21)},
}


@pytest.mark.parametrize("damage", HOSTILE)
def test_only_plain_tensors_of_the_right_shape_are_accepted(damage, copied):
    folder = copied("aesthetics")
    path = folder / PICKLED["aesthetics"]
    torch.save(HOSTILE[damage](dict(torch.load(path, weights_only=True))), path)
    with pytest.raises(ValueError) as error:
        scorers.load("aesthetics", folder)
    assert one_sentence(error)


@pytest.mark.parametrize("name", ["pickscore", "dinov2"])
@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "nan", "truncated"])
def test_safetensors_that_do_not_fit_are_refused(name, damage, copied):
    folder = copied(name)
    path = folder / "model.safetensors"
    weights = load_file(path)
    first = min(key for key in weights if key.endswith("weight"))
    changed = {
        "missing": {key: value for key, value in weights.items() if key != first},
        "unknown": {**weights, "extra": torch.zeros(1)},
        "shape": {**weights, first: torch.zeros(3, 3)},
        "nan": {**weights, first: torch.full_like(weights[first], torch.nan)},
        "truncated": weights,
    }[damage]
    save_file(changed, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    load = scorers.load_features if name == "dinov2" else scorers.load
    with pytest.raises(ValueError) as error:
        load(name, folder)
    named = {"truncated": path.name, "unknown": "extra"}.get(damage, first)
    assert one_sentence(error) and named in str(error.value)


@pytest.mark.parametrize("name", ["hpsv2", "imagereward"])
def test_renamed_weights_that_do_not_fit_are_refused(name, copied):
    folder = copied(name)
    path = folder / PICKLED[name]
    content = torch.load(path, weights_only=True)
    weights = dict(content.get("state_dict", content))
    for change in ({"surprise": torch.zeros(2)}, {min(weights): torch.zeros(1, 2)}):
        torch.save({**weights, **change}, path)
        with pytest.raises(ValueError) as error:
            scorers.load(name, folder)
        assert one_sentence(error)


def test_configurations_and_files_that_are_wrong_or_missing(copied):
    folder = copied("clip")
    for text in ("{", "[]", '{"vision_config": {"hidden_size": "wide"}}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError) as error:
            scorers.load("clip", folder)
        assert one_sentence(error)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no model.safetensors"):
        scorers.load("clip", folder)


@pytest.mark.parametrize("call", [scorers.load, scorers.load_features, scorers.files])
def test_unknown_names_list_the_choices(call):
    with pytest.raises(ValueError, match="'beauty'; choose one of: .*clip"):
        call("beauty")


def test_an_embedded_reward_is_not_read_from_single_files():
    with pytest.raises(ValueError, match="'preference' is not read from single files; only pickscore") as error:
        rewards.load("preference", {"preference.safetensors": "here"})
    assert one_sentence(error)


def test_without_network_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="neither on this machine nor to be had from the Hub") as error:
        scorers.load("pickscore")
    assert one_sentence(error)


def test_the_hubs_cache_is_used_and_checked(folders, images, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("pickscore", "aesthetics"):
        for repo, revision, file in scorers.files(name):
            cache = tmp_path / f"models--{repo.replace('/', '--')}"
            place = cache / "snapshots" / (revision or "0" * 40)
            place.mkdir(parents=True, exist_ok=True)
            (cache / "refs").mkdir(exist_ok=True)
            (cache / "refs" / "main").write_text(place.name)
            shutil.copy(folders[name] / file, place)
    assert torch.equal(scorers.load("pickscore")(images, PROMPTS), loaded["pickscore"](images, PROMPTS))
    with pytest.warns(UserWarning, match="not pinned"), pytest.raises(ValueError, match="differs from its checksum"):
        scorers.load("aesthetics")
