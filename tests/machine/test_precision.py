"""Precision: chosen by measuring, fixed by the environment, and the identities of the method hold in both."""

from __future__ import annotations

import copy

import pytest
import torch

from aig.machine import precision
from aig.machine.packed import multiply_in, packed
from aig.machine.precision import PRECISIONS, choose
from aig.method import schedules
from aig.method.adapters import blend, fused
from aig.method.frames import initial_latents
from aig.method.guidance import annealed
from aig.method.sampling import Trajectory
from tests.sampled import result

CALL = {"prompt": "a cat", "seeds": [3, 5], "steps": 6, "guidance": 3.0}
ERROR = {"float32": 2e-3, "bfloat16": 0.15}  # of a picture, by another order of summation


@pytest.fixture(params=list(PRECISIONS))
def name(request) -> str:
    return request.param


@pytest.fixture
def prepared(pipe, lora_file, name):
    """The base pipeline in a precision, and its tuned twin, made as the embedded world's."""
    packed(pipe.unet.requires_grad_(False).to(memory_format=torch.channels_last))
    assert choose(pipe.unet, wanted=name) == name
    return pipe, fused(pipe.unet, lora_file)


def column(schedule: str) -> Trajectory:
    return Trajectory(name=schedule, shares=schedules.shares(schedule, CALL["steps"]))


def stock(pipe, denoiser) -> torch.Tensor:
    """What the stock pipeline draws with a denoiser alone, (N, 3, H, W)."""
    own, pipe.unet = pipe.unet, denoiser
    try:
        return pipe(
            [CALL["prompt"]] * 2, num_inference_steps=CALL["steps"], guidance_scale=CALL["guidance"],
            latents=initial_latents(pipe, CALL["seeds"]), output_type="pt",
        ).images  # fmt: skip
    finally:
        pipe.unet = own


def test_ends_are_the_stock_pipelines_alone_and_beside_other_columns(prepared, name):
    pipe, twin = prepared
    alone = [result(pipe, [column(schedule)], tuned=twin, **CALL).images[0] for schedule in ("base", "draft")]
    beside = result(pipe, [column(schedule) for schedule in ("base", "power_2", "draft")], tuned=twin, **CALL).images
    for one, both, denoiser in zip(alone, beside[::2], (pipe.unet, twin)):
        torch.testing.assert_close(one, stock(pipe, denoiser), atol=1e-5, rtol=0)
        torch.testing.assert_close(both, one, atol=ERROR[name], rtol=0)
    assert (alone[0] - alone[1]).abs().max() > 0.01


def test_the_mix_is_the_naive_one(prepared, name):
    pipe, twin = prepared
    shares = column("power_2").shares
    left, base = iter(shares), pipe.unet.forward

    def naive(*args, **kwargs):
        return (torch.lerp(base(*args, **kwargs)[0], twin(*args, **kwargs)[0], next(left)),)

    pipe.unet.forward = naive
    expected = stock(pipe, pipe.unet)
    del pipe.unet.forward
    ours = result(pipe, [column("power_2")], tuned=twin, **CALL).images[0]
    torch.testing.assert_close(ours, expected, atol=1e-5 if name == "float32" else 0.01, rtol=0)


def test_equal_models_mix_to_the_base(prepared, name):
    pipe, _ = prepared
    with annealed(pipe, [0.5] * CALL["steps"], copy.deepcopy(pipe.unet)):
        mixed = stock(pipe, pipe.unet)
    torch.testing.assert_close(mixed, stock(pipe, pipe.unet), atol=1e-5, rtol=0)


def test_a_blend_follows_its_weights(prepared):
    pipe, twin = prepared
    inputs = initial_latents(pipe, [1, 2]), torch.tensor(500), torch.ones(2, 8, 16)
    at = blend(pipe.unet, twin)
    with torch.no_grad():
        ends = [model(*inputs).sample for model in (pipe.unet, twin)]
        for a in (0.0, 0.5, 1.0, 0.0):
            found = at(a)(*inputs).sample
            if a in (0.0, 1.0):
                assert torch.equal(found, ends[int(a)])
            else:
                assert not torch.equal(found, ends[0])


def test_bfloat16_is_near_float32_and_leaves_weights_and_outputs_alone(pipe):
    inputs = initial_latents(pipe, [1, 2]), torch.tensor(500), torch.ones(2, 8, 16)
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    with torch.no_grad():
        wide = pipe.unet(*inputs).sample
        narrow = multiply_in(pipe.unet, torch.bfloat16)(*inputs).sample
        again = multiply_in(pipe.unet, torch.float32)(*inputs).sample
    assert narrow.dtype == torch.float32 and not torch.equal(narrow, wide)
    assert (narrow - wide).norm() < 0.02 * wide.norm()
    torch.testing.assert_close(again, wide, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in pipe.unet.state_dict().items())
    assert all(value.dtype == torch.float32 for value in before.values())


# --- the choice ---


def multiplies_in(unet) -> set[torch.dtype]:
    return {part.multiplies_in for part in unet.modules() if hasattr(part, "multiplies_in")}


@pytest.mark.parametrize(
    ("flags", "narrow_time", "expected"),
    [((), 0.1, "float32"), (("avx512_bf16",), 0.7, "bfloat16"), (("amx_bf16",), 0.7, "bfloat16"), (("avx512_bf16",), 0.99, "float32")],
)
def test_bfloat16_where_it_is_there_and_quicker(pipe, monkeypatch, flags, narrow_time, expected):
    monkeypatch.delenv("AIG_PRECISION", raising=False)
    monkeypatch.setattr(precision, "measured", lambda denoiser, seconds: {"float32": 1.0, "bfloat16": narrow_time})
    packed(pipe.unet)
    assert choose(pipe.unet, flags=flags) == expected
    assert multiplies_in(pipe.unet) == {PRECISIONS[expected]}


def test_the_environment_fixes_it_and_nothing_is_measured(pipe, monkeypatch):
    monkeypatch.setattr(precision, "measured", None)
    monkeypatch.setenv("AIG_PRECISION", "bfloat16")
    assert choose(pipe.unet) == "bfloat16"
    monkeypatch.setenv("AIG_PRECISION", "float16")
    with pytest.raises(ValueError, match="Unknown precision 'float16' in AIG_PRECISION; choose one of: float32, bfloat16"):
        choose(pipe.unet)


def test_measuring_takes_turns_and_little_time(pipe):
    calls = []
    packed(pipe.unet)
    times = precision.measured(pipe.unet, 0.0, run=lambda: calls.append(multiplies_in(pipe.unet)))
    assert set(times) == set(PRECISIONS) and min(times.values()) >= 0
    assert [next(iter(each)) for each in calls[:6]] == [torch.float32] * 2 + [torch.bfloat16] * 2 + [torch.float32, torch.bfloat16]
