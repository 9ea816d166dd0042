"""The shipped world: it loads with our loader and with stock diffusers, and a damaged asset is named and refused."""

from __future__ import annotations

import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline

from aig.assets import ASSETS
from aig.method.sampling import Trajectory
from aig.portraits import serving
from tests.sampled import result

FOLDER = ASSETS / "portraits"


@pytest.fixture(scope="module")
def portraits():
    return serving.load()


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "portraits")
    return tmp_path


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match="'sdxxl'; choose one of: portraits"):
        serving.load("sdxxl")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "loras", "rewards"])
def test_a_flipped_byte_is_refused_by_name(copy, part):
    path = sorted((copy / "portraits" / part).glob("*.safetensors"))[-1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"portraits/{part}/{path.name} differs"):
        serving.load(assets=copy)


def test_a_missing_file_is_named(copy):
    (copy / "portraits" / "ruler.safetensors").unlink()
    with pytest.raises(ValueError, match="portraits/ruler.safetensors is missing"):
        serving.load(assets=copy)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="portraits"):
        serving.load(assets=tmp_path)


def test_nothing_is_pickled_and_every_file_is_below_ten_megabytes():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert files and not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    assert max(path.stat().st_size for path in files) < 10_000_000


def test_at_least_five_kl_coefficients_from_zero_up(portraits):
    for coefficients in portraits.facts.tunings.values():
        assert len(coefficients) >= 5 and coefficients[0] == 0


def test_every_lora_loads_the_stock_way_and_changes_the_picture():
    def pipe():
        stock = StableDiffusionPipeline.from_pretrained(FOLDER, use_safetensors=True)
        stock.set_progress_bar_config(disable=True)
        return stock

    def picture(stock):
        seed = torch.Generator().manual_seed(3)
        return torch.from_numpy(stock("a robot", num_inference_steps=3, generator=seed, output_type="np").images)

    base = picture(pipe())
    stock = pipe()
    for lora in sorted(FOLDER.glob("loras/*.safetensors")):
        stock.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name=lora.stem.replace(".", "_"))
        stock.set_adapters(lora.stem.replace(".", "_"))
        assert (picture(stock) - base).abs().max() > 1 / 255, lora.name


def test_the_fused_twin_draws_what_the_stock_lora_draws(portraits):
    stock = StableDiffusionPipeline.from_pretrained(FOLDER, use_safetensors=True)
    stock.set_progress_bar_config(disable=True)
    stock.load_lora_weights(FOLDER / "loras", weight_name="preference-kl-0.safetensors")
    settings = {"prompt": "a person with glasses", "seeds": [1, 2], "steps": 4, "guidance": 3.0}
    tuned = [Trajectory(name="tuned", shares=(1.0,) * 4)]
    theirs = result(stock, tuned, **settings).images
    ours = result(portraits.pipe, tuned, **settings, tuned=portraits.twin("preference", 0.0, 1.0)).images
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


def test_the_same_seed_is_the_same_picture_in_grids_of_1_4_and_16(portraits):
    column = [Trajectory(name="AIG", shares=(0.0, 0.1, 0.5, 1.0))]

    def first(n: int):
        frame = result(
            portraits.pipe,
            column,
            prompt="a robot",
            seeds=range(5, 5 + n),
            steps=4,
            guidance=3.0,
            tuned=portraits.twin("preference", 0.0, 1.0),
        )
        return frame.images[0, 0]

    alone = first(1)
    for n in (4, 16):
        torch.testing.assert_close(first(n), alone, atol=1e-3, rtol=0)


def test_rewards_and_features_judge_a_batch(portraits):
    images = torch.rand(3, 3, 64, 64)
    for reward in portraits.rewards.values():
        assert reward(images, ["a robot"] * 3).shape == (3,)
    images.requires_grad_(True)
    portraits.rewards["preference"](images, [""] * 3).sum().backward()
    assert images.grad.abs().max() > 0
    assert portraits.features(images.detach()).shape[0] == 3
    assert portraits.facts.open_attributes("a person with red hair on a blue background") == (
        "style", "hair length", "skin", "glasses", "beard", "hat", "mood", "outfit",
    )  # fmt: skip
    assert portraits.facts.unknown_words("a zebra with glasses") == ("zebra",)
