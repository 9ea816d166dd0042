"""The memory budget by hand and with an injected probe; on a CUDA GPU with the real one."""

from __future__ import annotations

import pytest
import torch

from aig.method.budget import RESERVE, Budget, denoiser_inputs, measured, most
from aig.method.sampling import Trajectory
from tests import families
from tests.sampled import result

GB = 1e9


@pytest.mark.parametrize(
    ("free", "fixed", "each", "rows"),
    [(10, 1, 1, 9), (10, 0, 3, 3), (2, 1, 1, 1), (0.5, 1, 1, 1), (-1, 0, 1, 1), (10, 4, 0.125, 48), (10, 1, 0, None)],
)
def test_rows_are_what_a_straight_line_leaves_room_for(free, fixed, each, rows):
    assert most(free * GB, lambda n: (fixed + each * n) * GB) == rows


def test_without_a_gpu_there_is_no_limit():
    assert measured(families.build("sd")) == Budget() == Budget(rows=None, images=None)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_probe_runs_the_family_s_own_networks(name):
    """Bytes are counted as what the networks return: so many rows, so many images."""
    pipe, seen = families.build(name), []

    def peak(run) -> float:
        seen.append(run()[0])
        return 100.0 + 10 * len(seen[-1])

    assert measured(pipe, free=lambda: 165 / (1 - RESERVE), peak=peak) == Budget(rows=6, images=6)
    size = families.size(name)
    assert [len(rows) for rows in seen] == [1, 2, 1, 2]
    assert all(images.shape[1:] == (3, size, size) for images in seen[2:])
    assert not families.denoiser(pipe)._forward_pre_hooks and pipe._progress_bar_config == {"disable": True}


def test_the_denoiser_is_asked_as_in_an_unguided_call():
    args, kwargs = denoiser_inputs(families.build("sdxl"), 3)
    assert args[0].shape == (3, 4, 8, 8) and kwargs["added_cond_kwargs"]["time_ids"].shape == (3, 6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_run_on_a_gpu_stays_within_the_budget():
    pipe = families.build("sd").to("cuda")
    free = 64e6
    budget = measured(pipe, 128, free=lambda: free)
    assert 1 <= budget.rows < 1000
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    columns = [Trajectory(name="base", shares=(0.0,) * 2)]
    call = {"prompt": "a", "seeds": range(32), "steps": 2, "guidance": 3.0, "size": 128}
    result(pipe, columns, tuned=pipe.unet, budget=budget, **call)
    assert torch.cuda.max_memory_allocated() - before < free
