"""CoDe's own pass: it stops, fails and restores like every other run."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aig.method.code import Code
from tests.sampled import frames, result

CALL = {"prompt": "a cat", "seeds": [3, 5], "steps": 6, "guidance": 3.0}


def bright(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.mean(dim=(1, 2, 3))


CODE = Code(candidates=2, reward=bright)


def assert_restored(pipe, scheduler) -> None:
    assert pipe.scheduler is scheduler and "step" not in vars(scheduler) and "forward" not in vars(pipe.unet)
    assert not getattr(pipe, "_interrupt", False)


def test_the_lora_plays_no_part_and_rows_are_counted(pipe, lora_pipe):
    scheduler = lora_pipe.scheduler
    frame = result(lora_pipe, [CODE], **CALL)
    plain = result(pipe, [dataclasses.replace(CODE, tuned=pipe.unet)], **CALL)
    assert torch.equal(frame.images, plain.images) and frame.images.shape == (1, 2, 3, 16, 16)
    assert frame.rows == 2 * 2 * 2 * 6 and frame.step == frame.steps == 6
    assert_restored(lora_pipe, scheduler)


def test_the_reward_decides(lora_pipe):
    dark = dataclasses.replace(CODE, reward=lambda images, prompts: -bright(images, prompts))
    one, other = (result(lora_pipe, [code], **CALL).images[0] for code in (CODE, dark))
    assert bright(one, []).mean() > bright(other, []).mean()


def test_frames_on_the_way_show_one_candidate_an_image(lora_pipe):
    shown = [(frame.step, frame.images) for frame in frames(lora_pipe, [CODE], **CALL)]
    assert [step for step, _ in shown] == [1, 2, 3, 4, 5, 6]
    assert all(images.shape == shown[-1][1].shape for _, images in shown)
    assert torch.equal(shown[-1][1], result(lora_pipe, [CODE], **CALL).images)


@pytest.mark.parametrize("evaluation", [0, 1, 4])
def test_stop_ends_within_one_step(lora_pipe, evaluation):
    calls, scheduler = [], lora_pipe.scheduler
    lora_pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    run = frames(lora_pipe, [CODE], **CALL)
    for _ in range(evaluation):
        next(run)
    run.close()
    assert len(calls) == evaluation
    assert_restored(lora_pipe, scheduler)


def test_a_failure_leaves_the_pipeline_as_it_was(lora_pipe):
    expected, scheduler = result(lora_pipe, [CODE], **CALL).images, lora_pipe.scheduler

    def broken(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        result(lora_pipe, [dataclasses.replace(CODE, reward=broken)], **CALL)
    assert_restored(lora_pipe, scheduler)
    with pytest.raises(FloatingPointError, match="not finite"):
        result(lora_pipe, [CODE], **CALL | {"guidance": 1e39})
    assert_restored(lora_pipe, scheduler)
    assert torch.equal(result(lora_pipe, [CODE], **CALL).images, expected)
