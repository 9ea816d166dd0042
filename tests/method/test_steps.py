"""Every scheduler's steps, counted by hand, in a stock pipeline and in the method written out."""

from __future__ import annotations

import copy
from dataclasses import replace

import diffusers as d
import pytest
import torch

from aig.method.guidance import annealed
from aig.method.steps import OneTooMany, beside, counted, step_of, steps_of
from tests.method.test_stock import built, naive, run
from tests.stock import BETAS

T = 5
SHARES = (0.0, 0.4, 1.0, 0.2, 0.7)
ONE_BY_ONE = (0, 1, 2, 3, 4)
HEUN = (0, 1, 1, 2, 2, 3, 3, 4, 4)  # its second evaluation of a step is at the next one's time
MIDDLE = (0, 0, 1, 1, 2, 2, 3, 3, 4)  # ... and KDPM2's between the two
SINGLE = (
    "CMStochasticIterativeScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "IPNDMScheduler", "LCMScheduler", "LMSDiscreteScheduler", "SASolverScheduler", "TCDScheduler",
    "UniPCMultistepScheduler",
)  # fmt: skip
CASES = [(name, {}, ONE_BY_ONE) for name in SINGLE] + [
    ("HeunDiscreteScheduler", {}, HEUN),
    ("FlowMatchHeunDiscreteScheduler", {}, HEUN),
    ("KDPM2DiscreteScheduler", {}, MIDDLE),
    ("KDPM2AncestralDiscreteScheduler", {}, MIDDLE),
    ("PNDMScheduler", {"skip_prk_steps": True}, (0, 1, 1, 2, 3, 4)),
    ("PNDMScheduler", {}, (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4)),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, ONE_BY_ONE),
    ("FlowMatchLCMScheduler", {}, ONE_BY_ONE),
]


def with_scheduler(scheduler, evaluations=ONE_BY_ONE):
    """Stable Diffusion with it; the calls at each step are the evaluations."""
    stock, twin = built("stable_diffusion")
    stock = replace(stock, pipe=copy.copy(stock.pipe), steps=T, calls=tuple(evaluations.count(i) for i in range(T)))
    stock.pipe.scheduler = scheduler
    if not hasattr(scheduler, "scale_model_input"):  # which this pipeline asks for, and flows have none
        scheduler.scale_model_input = lambda sample, timestep: sample
        scheduler.init_noise_sigma = 1.0
    return stock, twin


@pytest.mark.parametrize(("name", "options", "evaluations"), CASES, ids=lambda value: value if isinstance(value, str) else None)
def test_every_scheduler_is_the_naive_mix(name: str, options: dict, evaluations: tuple[int, ...]) -> None:
    kind = getattr(d, name)
    known = {key: value for key, value in BETAS.items() if key in kind._get_init_keys(kind)}
    stock, twin = with_scheduler(kind(**known, **options), evaluations)
    with annealed(stock.pipe, SHARES, twin) as ledger:
        mixed = run(stock, 1)[0]
    expected = naive(stock, twin, SHARES, 1)
    scale = expected.abs().max()
    torch.testing.assert_close(mixed / scale, expected / scale, atol=1e-4, rtol=1e-4)
    shares = [SHARES[i] for i in evaluations]
    assert ledger.rows == {"base": 2 * sum(g < 1 for g in shares), "tuned": 2 * sum(g > 0 for g in shares)}
    assert steps_of(stock.pipe.scheduler) == list(evaluations) and type(stock.pipe.scheduler) is kind


@pytest.mark.parametrize(
    "kind", [d.DDIMScheduler, d.HeunDiscreteScheduler, d.DPMSolverMultistepScheduler, d.FlowMatchEulerDiscreteScheduler]
)
def test_fewer_or_more_weights_than_steps_are_refused_before_a_model_is_asked(kind) -> None:
    stock, twin = with_scheduler(kind())
    for steps in (T - 1, T + 1, 2 * T - 1):
        with pytest.raises(ValueError, match=f"weights for {steps} steps, but the scheduler runs {T}"):
            with annealed(stock.pipe, [0.5] * steps, twin) as ledger:
                run(stock, 1)
        assert ledger.total == 0


def test_an_unknown_order_is_refused() -> None:
    scheduler = d.DDIMScheduler()
    scheduler.set_timesteps(4)
    scheduler.timesteps = torch.arange(17)
    with pytest.raises(ValueError, match="DDIMScheduler has 17 timesteps for 4 steps, in an order that is not known"):
        steps_of(scheduler)
    with pytest.raises(ValueError, match="HeliosScheduler samples in stages"):
        steps_of(d.HeliosScheduler())


TRAILING = [name for name, _, _ in CASES if "timestep_spacing" in getattr(d, name)._get_init_keys(getattr(d, name))]


@pytest.mark.parametrize("name", sorted({*TRAILING} - {"LCMScheduler", "TCDScheduler"}))  # theirs is another spacing
def test_one_step_too_many_is_refused_with_the_count_to_choose(name: str) -> None:
    kind = getattr(d, name)
    known = {key: value for key, value in BETAS.items() if key in kind._get_init_keys(kind)}
    known |= {"skip_prk_steps": True} if kind is d.PNDMScheduler else {}  # its Runge-Kutta steps need four others
    scheduler = kind(**known, timestep_spacing="trailing")
    refused = []
    for steps in range(1, 101):
        scheduler.set_timesteps(steps)
        try:
            assert 1 + steps_of(scheduler)[-1] == steps and min(scheduler.timesteps) >= 0
        except OneTooMany as problem:
            refused.append(str(problem))
    assert refused == [f"{name} with trailing spacing makes 62 steps of 61, the last of them from timestep -1: choose 60 steps"]


def test_the_count_to_choose_is_the_nearest_that_is_right() -> None:
    assert (beside(1000, 61), beside(1000, 60), beside(999, 53), beside(50, 1)) == (60, 60, 54, 1)
    stock, twin = with_scheduler(d.DDIMScheduler(timestep_spacing="trailing", **BETAS))
    stock = replace(stock, steps=61)
    with pytest.raises(OneTooMany, match="makes 62 steps of 61"), annealed(stock.pipe, [0.5] * 61, twin) as ledger:
        run(stock, 1)
    assert ledger.total == 0


def test_equal_timesteps_are_told_apart_by_the_count() -> None:
    scheduler = d.DPMSolverMultistepScheduler(num_train_timesteps=50, use_karras_sigmas=True)
    scheduler.set_timesteps(30)
    times = scheduler.timesteps.tolist()
    later = next(i for i in range(1, 30) if times[i] == times[i - 1])
    assert [step_of(scheduler, times[later]) for scheduler._step_index in (later - 1, later)] == [later - 1, later]
    with pytest.raises(ValueError, match="timestep 7.5 is not one of the scheduler's 30"):
        step_of(scheduler, 7.5)


def test_a_second_run_begins_anew_and_a_copy_of_the_scheduler_does_not_move_it() -> None:
    stock, twin = with_scheduler(d.DDIMScheduler(clip_sample=False, **BETAS))
    with annealed(stock.pipe, SHARES, twin):
        first = run(stock, 1)
        copied, kept = copy.deepcopy(stock.pipe.scheduler), copy.deepcopy(vars(stock.pipe.scheduler))
        copied.step(first, copied.timesteps[0], first)
        assert copied.step.method.__self__ is copied and kept["step"] is stock.pipe.scheduler.step
        assert torch.equal(run(stock, 1), first)


def test_pipelines_whose_scheduler_does_not_make_the_steps_are_refused() -> None:
    stock, twin = with_scheduler(d.DDIMScheduler(clip_sample=False, **BETAS))
    x, text = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8)
    stock.pipe.scheduler.set_timesteps(T)
    first, second = stock.pipe.scheduler.timesteps[:2]
    with torch.no_grad(), annealed(stock.pipe, SHARES, twin):
        stock.pipe.unet(x, first, text)
        with pytest.raises(ValueError, match="StableDiffusionPipeline goes on to another timestep without a step of its scheduler"):
            stock.pipe.unet(x, second, text)
        with pytest.raises(ValueError, match="steps from timestep .* where the scheduler's next is another"):
            stock.pipe.scheduler.step(x, second, x)
    with torch.no_grad(), annealed(stock.pipe, SHARES, twin):
        stock.pipe.unet(x, first, text)
        copied = copy.deepcopy(stock.pipe.scheduler)
        copied.step(x, first, x)
        with pytest.raises(ValueError, match="goes on to another timestep without a step of its scheduler"):
            stock.pipe.unet(x, first, text)


def test_a_scheduler_replaced_inside_is_refused() -> None:
    stock, twin = with_scheduler(d.DDIMScheduler(**BETAS))
    with annealed(stock.pipe, SHARES, twin):
        stock.pipe.scheduler = d.DDPMScheduler(**BETAS)
        with pytest.raises(ValueError, match="the pipeline's scheduler was replaced inside annealed"):
            run(stock, 1)


def test_the_scheduler_is_as_before_after_an_exception_and_of_its_own_class_meanwhile() -> None:
    """Bria's pipeline asks for the class itself."""
    stock, _ = with_scheduler(d.DDIMScheduler())
    before = dict(vars(stock.pipe.scheduler))
    with pytest.raises(KeyError), counted(stock.pipe, T):
        assert type(stock.pipe.scheduler) is d.DDIMScheduler
        raise KeyError
    assert vars(stock.pipe.scheduler) == before
