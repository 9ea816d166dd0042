"""Pipelines from a folder equal the stock loader's; tuned weights fused, switched or whole; memory given back."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from aig.method import adapters
from aig.published import pipelines
from tests import families

PROMPT = "a red cat"


@pytest.fixture(scope="module", params=["sd-v", "sdxl", "sd3", "flux-schnell", "pixart", "sana"])
def model(request, tmp_path_factory):
    """A family's name, its pipeline, and the folder that it is saved in with a LoRA and a second denoiser."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, families.save(request.param, folder), folder


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    """The folder of a Stable Diffusion pipeline."""
    folder = tmp_path_factory.mktemp("sd")
    families.save("sd", folder)
    return folder


def image(pipe, family: str) -> torch.Tensor:
    side = families.size(family)
    options = {"use_resolution_binning": False} if family in ("pixart", "sana") else {}
    return pipe(
        PROMPT,
        num_inference_steps=2,
        height=side,
        width=side,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
        **options,
    ).images


def image_by(pipe, family: str, function) -> torch.Tensor:
    """The image with another function in the place of the denoiser's forward."""
    base = families.denoiser(pipe)
    base.forward = lambda *args, **kwargs: function(*args, **kwargs)  # a module would become a submodule instead
    try:
        return image(pipe, family)
    finally:
        del base.forward


def test_a_loaded_pipeline_makes_the_same_images(model) -> None:
    family, pipe, folder = model
    loaded = pipelines.load(folder, type(pipe).__name__)
    assert type(loaded) is type(pipe) and loaded.dtype == torch.float32
    torch.testing.assert_close(image(loaded, family), image(pipe, family), atol=1e-4, rtol=1e-4)
    assert not any(weight.requires_grad for weight in families.denoiser(loaded).parameters())


def test_tuned_weights_in_every_mode(model) -> None:
    """Fused, switched and stock peft agree at several scales, and the base stays bitwise the base."""
    family, pipe, folder = model
    loaded = pipelines.load(folder, type(pipe).__name__)
    before, base = image(loaded, family), families.denoiser(loaded)
    fused = pipelines.tuned(loaded, families.source("lora"), folder, mode="fused")
    whole = pipelines.tuned(loaded, families.source("denoiser"), folder)
    half, full = (image_by(loaded, family, fused.at(scale)) for scale in (0.5, 1.0))
    assert torch.equal(image_by(loaded, family, fused.at(0.0)), before)
    expected = image_by(pipe, family, families.tuned(pipe))
    torch.testing.assert_close(image_by(loaded, family, whole.at(1.0)), expected, atol=1e-4, rtol=1e-3)
    switched = pipelines.tuned(loaded, families.source("lora"), folder, mode="switched")
    assert switched.at(0.5) is switched.at(0.5) and switched.bytes < fused.bytes
    for scale, expected in ((0.5, half), (1.0, full), (0.0, before)):
        found = image_by(loaded, family, switched.at(scale))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        assert torch.equal(image(loaded, family), before)  # between the calls the base is the base
    assert (full - before).abs().max() > 0.01 and (full - half).abs().max() > 0.001
    adapters.detach(base)
    assert not adapters.lora_layers(base) and torch.equal(image(loaded, family), before)


def test_fused_twins_share_what_the_lora_leaves(sd) -> None:
    pipe = pipelines.load(sd, "StableDiffusionPipeline")
    found = pipelines.tuned(pipe, families.source("lora"), sd, mode="fused")
    own = {weight.data_ptr() for weight in pipe.unet.parameters()}
    apart = [weight for weight in found.at(1.0).parameters() if weight.data_ptr() not in own]
    assert sum(weight.numel() * weight.element_size() for weight in apart) == found.bytes
    assert 0 < found.bytes < sum(weight.numel() * weight.element_size() for weight in pipe.unet.parameters())
    assert [a.stride() for a in pipe.unet.parameters()] == [b.stride() for b in found.at(1.0).parameters()]


def test_no_memory_is_free_where_none_is_told(monkeypatch) -> None:
    """As on kernels whose /proc/meminfo has no MemAvailable, outside of a container with a limit."""
    monkeypatch.setattr(pipelines.Path, "is_file", lambda path: str(path) == "/proc/meminfo")
    monkeypatch.setattr(pipelines.Path, "read_text", lambda path: "MemTotal:  1024 kB\n")
    assert pipelines.free_bytes("cpu") == 0


def test_the_mode_follows_the_free_memory(sd, monkeypatch) -> None:
    assert pipelines.choose(100, 60, 40) == "fused" and pipelines.choose(100, 60, 41) == "switched"
    assert pipelines.free_bytes("cpu") > 2**20
    pipe = pipelines.load(sd, "StableDiffusionPipeline")
    assert pipelines.tuned(pipe, families.source("lora"), sd, work_bytes=2**60).mode == "switched"
    adapters.detach(pipe.unet)
    assert pipelines.tuned(pipe, families.source("lora"), sd).mode == "fused"
    with pytest.raises(ValueError, match="Unknown mode 'both' for a LoRA; choose fused or switched"):
        pipelines.tuned(pipe, families.source("lora"), sd, mode="both")
    for scale in (11.0, float("nan")):
        with pytest.raises(ValueError, match="scale must be from -10 to 10"):
            pipelines.tuned(pipe, families.source("lora"), sd, mode="fused").at(scale)


@pytest.mark.parametrize("mode", ["fused", "switched"])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_compiled_blocks_change_no_image_at_any_scale(family, mode, tmp_path) -> None:
    name, graphs = type(families.save(family, tmp_path)).__name__, CompileCounter()
    pipe = pipelines.load(tmp_path, name)
    found = pipelines.tuned(pipe, families.source("lora"), tmp_path, mode=mode)

    def images(*scales: float) -> list[torch.Tensor]:
        return [image_by(pipe, family, found.at(scale)) for scale in scales]

    before, expected, others = image(pipe, family), images(1.0, 0.5), images(-0.5, 0.8, 0.0)
    torch.compiler.reset()
    pipelines.compile_blocks(families.denoiser(pipe), *found.holds, backend=graphs)
    torch.testing.assert_close([image(pipe, family), *images(1.0, 0.5)], [before, *expected], atol=1e-5, rtol=1e-5)
    known = graphs.frame_count
    torch.testing.assert_close(images(-0.5, 0.8, 0.0), others, atol=1e-5, rtol=1e-5)
    assert 0 < known == graphs.frame_count  # the scale is an input of a graph, not a part of it
    adapters.detach(families.denoiser(pipe))
    torch.testing.assert_close(image(pipe, family), before, atol=1e-5, rtol=1e-5)
    again = pipelines.tuned(pipe, families.source("lora"), tmp_path, mode="fused").at(1.0)  # a copy of what is compiled
    torch.testing.assert_close(image_by(pipe, family, again), expected[0], atol=1e-3, rtol=1e-3)


def test_a_switched_lora_returns_to_the_base_after_an_error(sd) -> None:
    pipe = pipelines.load(sd, "StableDiffusionPipeline")
    before = image(pipe, "sd")
    at = pipelines.tuned(pipe, families.source("lora"), sd, mode="switched").at
    with pytest.raises(TypeError):
        at(1.0)("not a tensor")
    assert torch.equal(image(pipe, "sd"), before)


def test_dtype_and_layout(sd) -> None:
    pipe = pipelines.load(sd, "StableDiffusionPipeline", dtype=torch.bfloat16)
    assert {module.dtype for module in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.bfloat16}
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for mode in ("fused", "switched"):
        at = pipelines.tuned(pipe, families.source("lora"), sd, mode=mode).at
        x, text = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16), torch.randn(1, 8, 16, dtype=torch.bfloat16)
        assert at(1.0)(x, 5, text, return_dict=False)[0].dtype == torch.bfloat16


def test_release_frees_what_others_still_hold(sd) -> None:
    pipe = pipelines.load(sd, "StableDiffusionPipeline")
    storage = weakref.ref(pipe.unet.conv_in.weight.untyped_storage())
    unet = pipe.unet
    pipelines.release(pipe, None)
    gc.collect()
    assert storage() is None and all(weight.is_meta for weight in unet.parameters())


def test_a_load_that_fails_half_way_leaves_nothing(sd, tmp_path) -> None:
    import shutil

    shutil.copytree(sd, tmp_path / "m")
    (tmp_path / "m" / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL", "block_out_channels": [8, 12]}')
    gc.collect()
    before = sum(isinstance(found, torch.nn.Parameter) and not found.is_meta for found in gc.get_objects())
    with pytest.raises(ValueError, match="The vae of 'm'") as caught:
        pipelines.load(tmp_path / "m", "StableDiffusionPipeline")
    after = sum(isinstance(found, torch.nn.Parameter) and not found.is_meta for found in gc.get_objects())
    assert after == before and caught.value.__traceback__ is not None  # the error is still alive, the weights are not


def test_switching_between_models_gives_the_memory_back() -> None:
    """100 MB models A, B, A, B in a process of their own: the resident memory stays within a tenth of a model."""
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks.switching", "--megabytes", "100"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    sizes = [float(line.split()[-2]) for line in done.stdout.splitlines() if line.startswith("with ")]
    assert len(sizes) == 4 and max(sizes) <= 1.10 * sizes[0], done.stdout
