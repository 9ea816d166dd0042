from __future__ import annotations

import json
import re

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from aig.method import adapters

Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"


def evaluate(module, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, c = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 8, 16, generator=generator)
    with torch.no_grad():
        return module(x, 500, c, return_dict=False)[0]


def test_fused_equals_stock_lora(pipe, lora_pipe, lora_file) -> None:
    base = evaluate(pipe.unet)
    twin = adapters.fused(pipe.unet, lora_file)
    assert (evaluate(twin) - base).abs().max() > 0.01
    torch.testing.assert_close(evaluate(twin), evaluate(lora_pipe.unet), atol=1e-5, rtol=1e-4)
    assert not adapters.lora_layers(twin) and adapters.lora_layers(lora_pipe.unet)


@pytest.mark.parametrize("scale", [0.0, 0.5, -1.0, 1.5])
def test_fused_scale_equals_stock_adapter_weight(pipe, lora_pipe, lora_file, scale: float) -> None:
    lora_pipe.set_adapters(lora_pipe.get_active_adapters(), [scale])
    twin = adapters.fused(pipe.unet, load_file(lora_file), scale)
    torch.testing.assert_close(evaluate(twin), evaluate(lora_pipe.unet), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_kept_in_the_file_is_obeyed(make_pipe, tmp_path, rslora: bool) -> None:
    """diffusers keeps alpha in the file's metadata; stock loading and fusing must agree on it."""
    tuned = make_pipe()
    options = {"r": 2, "lora_alpha": 3, "alpha_pattern": {"to_v": 1}, "use_rslora": rslora}
    config = LoraConfig(target_modules=["to_q", "to_v"], **options)
    tuned.unet.add_adapter(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in (p for name, p in tuned.unet.named_parameters() if "lora_" in name):
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)  # tuning far larger than the weights magnifies rounding
    state, settings = get_peft_model_state_dict(tuned.unet), tuned.unet.peft_config["default"].to_dict()
    tuned.save_lora_weights(tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=settings)
    twin = adapters.fused(make_pipe().unet, tmp_path / "pytorch_lora_weights.safetensors")
    torch.testing.assert_close(evaluate(twin), evaluate(tuned.unet), atol=1e-5, rtol=1e-4)
    ignoring = adapters.fused(make_pipe().unet, {f"unet.{key}": value for key, value in state.items()})
    assert (evaluate(ignoring) - evaluate(tuned.unet)).abs().max() > 1e-2


def test_fused_leaves_the_base_untouched(pipe, lora_file) -> None:
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    twin = adapters.fused(pipe.unet, lora_file)
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.unet.state_dict().items())
    assert all(parameter.requires_grad for parameter in pipe.unet.parameters())
    changed = {name for name, tensor in twin.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {f"{layer}.weight" for layer in adapters.increments(pipe.unet, lora_file)}


def test_pair_switches_and_restores(pipe, lora_pipe) -> None:
    base, tuned = adapters.pair(lora_pipe.unet)
    stock_tuned, trainable = evaluate(lora_pipe.unet), [p.requires_grad for p in lora_pipe.unet.parameters()]
    for disabled in (False, True):
        lora_pipe.disable_lora() if disabled else lora_pipe.enable_lora()
        trainable = [p.requires_grad for p in lora_pipe.unet.parameters()]
        assert torch.equal(evaluate(base), evaluate(pipe.unet))
        assert torch.equal(evaluate(tuned), stock_tuned)
        assert {layer.disable_adapters for layer in adapters.lora_layers(lora_pipe.unet)} == {disabled}
        assert [p.requires_grad for p in lora_pipe.unet.parameters()] == trainable


def test_pair_needs_a_live_lora(pipe, lora_pipe) -> None:
    with pytest.raises(ValueError, match="no LoRA is loaded"):
        adapters.pair(pipe.unet)
    lora_pipe.fuse_lora()
    with pytest.raises(ValueError, match="unfuse_lora"):
        adapters.pair(lora_pipe.unet)


def test_fused_refuses_a_denoiser_with_lora(lora_pipe, lora_file) -> None:
    with pytest.raises(ValueError, match="unload_lora_weights"):
        adapters.fused(lora_pipe.unet, lora_file)


def broken(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    """Files that stock loading accepts or fails on without a clear word, and what is said here."""
    up = Q.replace("lora_A", "lora_B")
    without = {key: tensor for key, tensor in tensors.items() if key != up}
    return {
        "nan": ({**tensors, Q: tensors[Q] * float("nan")}, "NaN or infinite values for 'down_blocks.1"),
        "infinite product": ({**tensors, Q: tensors[Q] * 1e30, up: tensors[up] * 1e30}, "NaN or infinite"),
        "half a pair": (without, "only one of lora_A and lora_B for 'down_blocks.1"),
        "rank": ({**tensors, Q: torch.ones(4096, 16), up: torch.ones(16, 4096)}, "rank 4096 for .* where 1 to 16"),
        "ranks differ": ({**tensors, up: torch.ones(16, 3)}, "shapes .* do not fit"),
        "wrong width": ({**tensors, Q: torch.ones(2, 8)}, r"shapes \(2, 8\) .* do not fit .* of \(16, 16\)"),
        "flat": ({**tensors, Q: torch.ones(2)}, "is not a matrix"),
        "integers": ({**tensors, Q: torch.ones(2, 16, dtype=torch.int32)}, "is not a matrix of real numbers"),
        "no such layer": ({key.replace("to_q", "to_z"): tensors[key] for key in (Q, up)}, "tunes .*to_z"),
        "text encoder": ({**tensors, "text_encoder.x.lora_A.weight": tensors[Q]}, "holds 'text_encoder.x"),
        "alpha tensor": ({**tensors, Q.replace("lora_A.weight", "alpha"): torch.tensor(1e9)}, "holds .*alpha'"),
        "DoRA": ({**tensors, Q.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(16)}, "holds .*magnitude"),
        "empty": ({}, "holds no tensors"),
    }


def test_broken_tensors_are_refused(pipe, lora_file) -> None:
    before = evaluate(pipe.unet)
    for name, (tensors, message) in broken(load_file(lora_file)).items():
        with pytest.raises(ValueError) as caught:
            adapters.fused(pipe.unet, tensors)
        assert re.search(message, str(caught.value)) and "\n" not in str(caught.value), f"{name}: {caught.value}"
    assert torch.equal(evaluate(pipe.unet), before)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 10.5, -1e9])
def test_insane_scale_is_refused(pipe, lora_file, scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        adapters.fused(pipe.unet, lora_file, scale)


@pytest.mark.parametrize("alpha", [1e9, -1e9, "2", None, float("nan")])
def test_absurd_alpha_is_refused(pipe, lora_file, tmp_path, alpha: object) -> None:
    path = tmp_path / "absurd.safetensors"
    save_file(load_file(lora_file), path, metadata={"lora_adapter_metadata": json.dumps({"unet.lora_alpha": alpha})})
    with pytest.raises(ValueError, match="alpha"):
        adapters.fused(pipe.unet, path)


def test_unreadable_files_are_refused(pipe, lora_file, tmp_path) -> None:
    content = lora_file.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:200])
    (tmp_path / "empty.safetensors").touch()
    torch.save(load_file(lora_file), tmp_path / "pickle.bin")
    torch.save(load_file(lora_file), tmp_path / "disguised.safetensors")
    for name in ("cut.safetensors", "empty.safetensors", "pickle.bin", "disguised.safetensors", "missing.safetensors"):
        with pytest.raises(ValueError, match=f"{name}.*safetensors"):
            adapters.fused(pipe.unet, tmp_path / name)


def test_denoiser_is_the_unet_and_something_must_be(pipe) -> None:
    assert adapters.denoiser(pipe) is pipe.unet
    pipe.unet = None
    with pytest.raises(ValueError, match="StableDiffusionPipeline has no denoiser"):
        adapters.denoiser(pipe)
