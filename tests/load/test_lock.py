"""Shared model state: every image equals its serial reference, and without the one worker it does not."""

from __future__ import annotations

import random
import threading

import torch

from aig.method.adapters import denoiser
from aig.method.sampling import Trajectory
from aig.runs.engine import Engine
from aig.runs.request import Request
from tests.sampled import result
from tests.serving import tiny_model

CONDITIONS = (
    Request(prompt="a", images=1, steps=4, schedule="linear"),
    Request(prompt="b", images=2, steps=4, schedule="step_0.6", kl=0.5),
    Request(prompt="c d", images=1, steps=4, schedule="power_2", lora_scale=0.5, columns=("scheduled:linear", "cads:0.1", "code:2")),
)
RUNS, THREADS = 20, 4


def last(stream):
    *_, update = stream
    return update


def test_no_image_is_wrong_under_load(pipe, lora_file):
    model = tiny_model(pipe, lora_file)
    engine = Engine(lambda: model, max_waiting=64)
    references = [last(engine.stream(request)).images.tobytes() for request in CONDITIONS]
    wrong, done = [], []

    def client(number: int) -> None:
        rng = random.Random(number)
        for _ in range(RUNS):
            for condition, request in enumerate(CONDITIONS):
                if rng.random() < 0.2:  # a visitor who leaves
                    left = engine.stream(request)
                    next(left)
                    left.close()
                images = last(engine.stream(request)).images.tobytes()
                done.append(condition)
                if images != references[condition]:
                    wrong.append((number, condition))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert len(done) == RUNS * THREADS * len(CONDITIONS) == 240
    assert not wrong


def test_without_the_worker_images_are_wrong(lora_pipe):
    """The same kind of load straight on one pipeline, its LoRA switched: this is what the worker is for."""
    plans = [
        Trajectory(name="base", shares=(0.0,) * 4),
        Trajectory(name="tuned", shares=(1.0,) * 4),
        Trajectory(name="mix", shares=(0.5,) * 4),
    ]

    def run(plan: Trajectory) -> torch.Tensor:
        return result(lora_pipe, [plan], prompt="a", seeds=[1], steps=4, guidance=4.0).images

    references = [run(plan) for plan in plans]
    wrong = []

    def client(number: int) -> None:
        for _ in range(RUNS):
            for plan, reference in zip(plans, references, strict=True):
                try:
                    same = torch.equal(run(plan), reference)
                except Exception:  # a broken run counts as a wrong image
                    same = False
                if not same:
                    wrong.append(number)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong, "unlocked runs were all right: this test no longer shows what the worker prevents"
    assert denoiser(lora_pipe) is lora_pipe.unet
