"""CoDe's own pass: it stops, fails and restores like every other run."""

from __future__ import annotations

import pytest
import torch

from aig.controlled import best_of
from aig.sampling import Stopped

CALL = {"prompt": "a cat", "seeds": [3, 5], "steps": 6, "guidance": 3.0, "candidates": 2}


def bright(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.mean(dim=(1, 2, 3))


@pytest.fixture
def call(lora_pipe):
    """CoDe on a pipeline that carries a LoRA, which must play no part."""
    return lambda **changes: best_of(lora_pipe, **{**CALL, "reward": bright} | changes)


def assert_restored(pipe, scheduler) -> None:
    assert pipe.scheduler is scheduler and "step" not in vars(scheduler) and "forward" not in vars(pipe.unet)
    assert not getattr(pipe, "_interrupt", False)


def test_the_lora_plays_no_part_and_rows_are_counted(call, pipe, lora_pipe):
    scheduler = lora_pipe.scheduler
    frame = call()
    plain = best_of(pipe, **CALL, reward=bright, tuned=pipe.unet)
    assert torch.equal(frame.images, plain.images) and frame.images.shape == (1, 2, 3, 16, 16)
    assert frame.rows == 2 * 2 * 2 * 6 and frame.final and frame.step == 6
    assert_restored(lora_pipe, scheduler)


def test_the_reward_decides(call):
    dark = call(reward=lambda images, prompts: -bright(images, prompts))
    assert bright(call().images[0], []).mean() > bright(dark.images[0], []).mean()


def test_previews_show_one_candidate_an_image(call):
    frames = []
    final = call(on_frame=frames.append, preview_share=float("inf"))
    assert [frame.step for frame in frames] == [1, 2, 3, 4, 5]
    assert all(frame.images.shape == final.images.shape for frame in frames)
    assert torch.equal(final.images, call().images)


@pytest.mark.parametrize("evaluation", [0, 1, 4])
def test_stop_ends_within_one_step(call, lora_pipe, evaluation):
    asked, calls, scheduler = [], [], lora_pipe.scheduler
    lora_pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(Stopped):
        call(stop=lambda: asked.append(1) or len(asked) > evaluation)
    assert len(calls) == evaluation
    assert_restored(lora_pipe, scheduler)


def test_a_failure_leaves_the_pipeline_as_it_was(call, lora_pipe):
    expected, scheduler = call().images, lora_pipe.scheduler

    def broken(*_):
        raise ZeroDivisionError

    for trouble in ({"reward": broken}, {"on_frame": broken}, {"stop": broken}):
        with pytest.raises(ZeroDivisionError):
            call(**trouble)
        assert_restored(lora_pipe, scheduler)
    with pytest.raises(FloatingPointError, match="not finite"):
        call(guidance=1e39)
    assert_restored(lora_pipe, scheduler)
    assert torch.equal(call().images, expected)
