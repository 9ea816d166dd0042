"""The method on every model family: at its ends the stock pipeline bit for bit, between them two models written out."""

from __future__ import annotations

import dataclasses
import inspect
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, LCMScheduler
from torch import Tensor, nn

from aig.method import families as facts
from aig.method import schedules
from aig.method.code import Code
from aig.method.frames import clean_latents, decode, initial_latents, watched
from aig.method.guidance import annealed
from aig.method.sampling import Trajectory
from tests import families
from tests.families import FAMILIES
from tests.sampled import frames as sampled
from tests.sampled import result

PROMPT, STEPS, SCALE = "a cat", 3, 3.0
OFFICIAL = ("base", "draft", "linear", "power_2", "power_4", "step_0.6")
FLOWS = ("sd3", "flux", "flux-schnell")
CALL = {"prompt": PROMPT, "seeds": [1, 2], "steps": STEPS, "guidance": SCALE}
CLOSE = {"atol": 1e-3, "rtol": 1e-3}  # rows in batches of another size

every = pytest.mark.parametrize("name", FAMILIES)


class Both(nn.Module):
    """The method written out: both models at every evaluation, mixed by the next share."""

    def __init__(self, base: nn.Module, tuned: nn.Module, shares) -> None:
        super().__init__()
        self.base, self.tuned, self.shares = base, tuned, iter(shares)

    def __getattr__(self, name: str):
        return self._modules[name] if name in self._modules else getattr(self._modules["base"], name)

    def forward(self, *args, **kwargs):
        g = next(self.shares)
        return ((1 - g) * self.base(*args, **kwargs)[0] + g * self.tuned(*args, **kwargs)[0],)


class Case:
    """A family's pipelines, made once; every test leaves them as they were."""

    def __init__(self, name: str, folder) -> None:
        self.name, self.pipe, self.lora_pipe = name, families.build(name), families.build(name)
        self.twin = families.tuned(self.pipe)
        families.attach(self.lora_pipe, families.lora(self.pipe, folder))

    def run(self, pipe: DiffusionPipeline, *seeds: int, **changes) -> Tensor:
        """The stock call: what it returns for one image a seed, from the noise that it draws itself."""
        options = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent"}
        options |= {"height": families.size(self.name), "width": families.size(self.name)}
        if self.name in ("pixart", "sana"):
            options["use_resolution_binning"] = False
        if self.name == "sana":
            options["complex_human_instruction"] = None  # long, and of no concern here
        if self.name == "flux-schnell":
            options["max_sequence_length"] = 256
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe([PROMPT] * len(seeds), generator=generators, **options | changes).images

    @contextmanager
    def using(self, model: nn.Module):
        """The pipeline with another denoiser."""
        part = "unet" if hasattr(self.pipe, "unet") else "transformer"
        stock = getattr(self.pipe, part)
        setattr(self.pipe, part, model)
        yield self.pipe
        setattr(self.pipe, part, stock)

    def naive(self, tuned: nn.Module, shares, *seeds: int, **changes) -> Tensor:
        with self.using(Both(families.denoiser(self.pipe), tuned, shares)) as pipe:
            return self.run(pipe, *seeds, **changes)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return cache(lambda name: Case(name, tmp_path_factory.mktemp(name)))


def table(*names: str, steps: int = STEPS) -> list[tuple[float, ...]]:
    """(T, B) shares of B schedules."""
    return list(zip(*(schedules.shares(name, steps) for name in names)))


def columns(*names: str, steps: int = STEPS, **options) -> list[Trajectory]:
    return [Trajectory(name=name, shares=schedules.shares(name, steps, **options)) for name in names]


def calls(pipe: DiffusionPipeline) -> tuple[list[int], object]:
    """Grows by one at every evaluation of the denoiser or of a part of its rows; with the handle that ends it."""
    seen: list[int] = []
    first = next(module for name, module in families.denoiser(pipe).named_modules() if name and "." not in name)
    return seen, first.register_forward_hook(lambda *_: seen.append(1))


def branches(pipe: DiffusionPipeline, guidance: float) -> int:
    """Model rows of an image at each evaluation: 2 with classifier-free guidance."""
    return 2 if guidance > 1 and type(pipe).__name__ not in facts.DISTILLED else 1


# --- the method ---


@every
def test_ends_are_the_stock_pipelines_bit_for_bit(case, name):
    case = case(name)
    pipe, lora_pipe = case.pipe, case.lora_pipe
    base, lora = case.run(pipe, 1, 2), case.run(lora_pipe, 1, 2)
    with case.using(case.twin):
        tuned = case.run(pipe, 1, 2)
    rows = 2 * branches(pipe, SCALE) * STEPS
    ends = [(pipe, case.twin, 0.0, base), (pipe, case.twin, 1.0, tuned)]
    for ours, model, g, expected in (*ends, (lora_pipe, None, 0.0, base), (lora_pipe, None, 1.0, lora)):
        with annealed(ours, [g] * STEPS, model) as ledger:
            assert torch.equal(case.run(ours, 1, 2), expected)
        assert ledger.rows == {"base": rows * (g == 0), "tuned": rows * (g == 1)}
    assert min((base - tuned).abs().max(), (base - lora).abs().max()) > 0.02


@every
@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_official_schedules_in_one_batch_equal_two_models_one_by_one(case, name, scale):
    """The batch holds one image of each schedule, and all share their rows while they can."""
    case, seeds = case(name), [7] * len(OFFICIAL)
    for ours, model in ((case.pipe, case.twin), (case.lora_pipe, None))[: 2 if scale > 1 else 1]:
        with annealed(ours, table(*OFFICIAL), model, groups=seeds) as ledger:
            together = case.run(ours, *seeds, guidance_scale=scale)
        # all but draft part after the second step of three, base and step_0.6 after that
        times = branches(ours, scale)
        assert ledger.rows == {"base": times * (1 + 1 + 4), "tuned": times * (1 + 2 + 5)}
        for image, schedule in list(zip(together, OFFICIAL))[0 if scale > 1 else 3 :]:
            g = schedules.shares(schedule, STEPS)
            expected = case.naive(model or families.denoiser(case.lora_pipe), g, 7, guidance_scale=scale)[0]
            torch.testing.assert_close(image, expected, **CLOSE)
        assert min((a - b).abs().max() for i, a in enumerate(together) for b in together[:i]) > 1e-4


@every
@pytest.mark.parametrize("most", [1, 2])
def test_chunks_change_nothing_but_the_calls(case, name, most):
    case, seeds, groups = case(name), (7, 7, 8, 9, 9), (7, 7, 8, 9, 9)
    shares, results, ledgers = table("base", "power_2", "step_0.6", "constant_1.5", "draft"), [], []
    for limit in (None, most):
        with annealed(case.pipe, shares, case.twin, groups=groups, rows_at_once=limit) as ledger:
            seen, handle = calls(case.pipe)
            results.append(case.run(case.pipe, *seeds))
            handle.remove()
        ledgers.append((ledger, len(seen)))
    torch.testing.assert_close(*results, **CLOSE)
    (whole, few), (cut, many) = ledgers
    assert cut.rows == whole.rows and many > few
    if most == 1:
        assert many == cut.rows["base"]


def test_rows_at_once_is_checked(case):
    with pytest.raises(ValueError, match="rows_at_once must be at least 1, not 0"):
        with annealed(case("sd").pipe, [0.0], case("sd").twin, rows_at_once=0):
            pass


@pytest.mark.parametrize("name", ["flux", "flux-schnell"])
def test_positions_are_not_rows_even_if_there_are_as_many(case, name):
    """16 images of 16 patches each; the table asks for some rows of either model only."""
    case, seeds = case(name), tuple(range(16))
    assert len(case.run(case.pipe, 1)[0]) == len(seeds)
    shares = [[0.0, 1.0] * 8, [0.5, 0.0] * 8, [1.0, 0.3] * 8]
    with annealed(case.pipe, shares, case.twin):
        together = case.run(case.pipe, *seeds)
    for b in (0, 3):
        torch.testing.assert_close(together[b], case.naive(case.twin, [row[b] for row in shares], b)[0], **CLOSE)


def test_true_guidance_of_flux_asks_for_its_branches_one_after_the_other(case):
    case, true = case("flux"), {"negative_prompt": ["dogs"] * 2, "true_cfg_scale": 4.0}
    shares = table("power_2", "step_0.6")
    with annealed(case.pipe, shares, case.twin, groups=[7, 7]) as ledger:
        together = case.run(case.pipe, 7, 7, **true)
    assert ledger.rows == {"base": 2 * (1 + 1 + 1), "tuned": 2 * (0 + 1 + 2)} and ledger.leader == [0, 1]
    for b, image in enumerate(together):
        twice = [row[b] for row in shares for _ in range(2)]
        expected = case.naive(case.twin, twice, 7, **true | {"negative_prompt": ["dogs"]})
        torch.testing.assert_close(image, expected[0], **CLOSE)


def test_true_guidance_of_flux_can_be_left_out_and_texts_change_the_prompt_alone(case):
    case, true = case("flux"), {"negative_prompt": ["dogs"] * 2, "true_cfg_scale": 4.0}
    other = case.pipe.encode_prompt("hats", None, max_sequence_length=512)[0][0]
    call = {"guided": [[True, False]] * STEPS, "texts": [lambda i, y: other, None]}
    with annealed(case.pipe, [[1.0, 1.0]] * STEPS, case.twin, groups=[7, 7], **call) as ledger:
        changed, unguided = case.run(case.pipe, 7, 7, **true)
    assert ledger.rows == {"base": 0, "tuned": STEPS * (2 + 1)}
    torch.testing.assert_close(unguided, case.naive(case.twin, [1.0] * STEPS, 7)[0], **CLOSE)
    embeddings = {"prompt_embeds": other[None], "pooled_prompt_embeds": case.pipe.encode_prompt(PROMPT, None)[1]}
    generator = torch.Generator().manual_seed(7)
    with case.using(case.twin) as pipe:
        size, options = families.size("flux"), true | {"negative_prompt": "dogs"}
        expected = pipe(
            **embeddings, **options, num_inference_steps=STEPS, guidance_scale=SCALE, height=size, width=size,
            generator=generator, output_type="latent",
        ).images  # fmt: skip
    torch.testing.assert_close(changed, expected[0], **CLOSE)


@every
def test_weights_for_another_number_of_images_are_refused(case, name):
    case = case(name)
    with pytest.raises(ValueError, match="weights for 3 images"), annealed(case.pipe, [[0.0] * 3] * STEPS, case.twin):
        case.run(case.pipe, 1, 2)


# --- sampling ---


@every
def test_columns_are_the_stock_pipelines_images(case, name):
    case = case(name)
    frame = result(case.lora_pipe, columns("base", "draft"), **CALL)
    size = families.size(name)
    assert frame.images.shape == (2, 2, 3, size, size) and frame.rows == 4 * branches(case.pipe, SCALE) * STEPS
    options = {}
    if name == "sana":  # the instruction that the stock call has by default, and which run() leaves out
        told = inspect.signature(case.pipe.__call__).parameters["complex_human_instruction"].default
        options["complex_human_instruction"] = told
    for stock, images in zip((case.pipe, case.lora_pipe), frame.images):
        torch.testing.assert_close(images, case.run(stock, 1, 2, output_type="pt", **options), atol=1e-3, rtol=0)


@every
def test_previews_approach_the_result_and_stopping_ends_within_a_step(case, name):
    case = case(name)
    call = CALL | {"tuned": case.twin}
    shown = [(frame.step, frame.images) for frame in sampled(case.pipe, columns("linear"), **call)]
    assert [step for step, _ in shown] == [1, 2, 3]
    assert all(images.shape == shown[-1][1].shape for _, images in shown)
    assert (shown[1][1] - shown[2][1]).abs().mean() > 0
    for evaluations in (0, 1, 2):
        seen, handle = calls(case.pipe)
        run = sampled(case.pipe, columns("base"), **call)
        for _ in range(evaluations):
            next(run)
        run.close()
        handle.remove()
        assert len(seen) == evaluations
    assert "forward" not in vars(families.denoiser(case.pipe)) and "step" not in vars(case.pipe.scheduler)
    assert torch.equal(result(case.pipe, columns("linear"), **call).images, shown[-1][1])


@every
def test_the_last_predicted_clean_latents_are_the_result(case, name):
    """The last step goes where the prediction points: exactly for flows, nearly for others that keep some noise."""
    case, seen = case(name), []
    pipe = case.pipe

    def see(output, timestep, latents):
        seen.append(clean_latents(pipe.scheduler, output, timestep, latents))

    with watched(pipe, see, [None]):
        result = case.run(pipe, 1)
    torch.testing.assert_close(seen[-1], result, **CLOSE if name in FLOWS else {"atol": 0.2, "rtol": 0.1})
    assert (seen[-1] - result).abs().mean() < (seen[0] - result).abs().mean()


@every
@pytest.mark.parametrize("drawn", [False, True])
def test_an_image_belongs_to_its_seed(case, name, drawn):
    """In a grid and alone; also with a sampler that draws noise, where the pipeline may hand it no generator."""
    case = case(name)
    stock, call = case.pipe.scheduler, CALL | {"tuned": case.twin}
    if drawn:
        case.pipe.scheduler = facts.stochastic(stock)
    try:
        grid = result(case.pipe, columns("power_2", "base"), **call | {"seeds": [4, 5, 6]}).images
        alone = result(case.pipe, columns("power_2"), **call | {"seeds": [6]}).images
    finally:
        case.pipe.scheduler = stock
    torch.testing.assert_close(grid[0, 2], alone[0, 0], atol=1e-3, rtol=0)
    assert (grid[0, 0] - grid[0, 1]).abs().max() > 1e-2


@every
def test_noise_on_the_prompt_changes_its_own_column(case, name):
    case = case(name)
    plain, noisy = columns("draft")[0], Trajectory(name="CADS", shares=(1.0,) * STEPS, noise=1.0)
    alone = result(case.pipe, [plain], tuned=case.twin, **CALL).images
    both = result(case.pipe, [plain, noisy], tuned=case.twin, **CALL).images
    torch.testing.assert_close(both[0], alone[0], atol=1e-3, rtol=0)
    assert (both[1] - both[0]).abs().max() > 1e-3


def bright(images: Tensor, prompts: list[str]) -> Tensor:
    return images.mean(dim=(1, 2, 3))


@every
def test_best_of_takes_the_brighter_and_leaves_the_pipeline(case, name):
    case, call = case(name), CALL | {"steps": 5}
    scheduler = case.pipe.scheduler
    code = Code(candidates=3, reward=bright, tuned=case.twin)
    *way, frame = sampled(case.pipe, [code], **call)
    dark = result(case.pipe, [dataclasses.replace(code, reward=lambda images, prompts: -bright(images, prompts))], **call)
    assert frame.rows == 2 * 3 * 5 * branches(case.pipe, SCALE) and [f.step for f in way] == [1, 2, 3, 4]
    assert bright(frame.images[0], []).min() > bright(dark.images[0], []).min()
    assert (bright(frame.images[0], []) > bright(dark.images[0], [])).all()
    again = result(case.pipe, [code], **call | {"seeds": [2]})
    torch.testing.assert_close(again.images[0, 0], frame.images[0, 1], atol=1e-3, rtol=0)
    assert case.pipe.scheduler is scheduler
    seen, handle = calls(case.pipe)
    run = sampled(case.pipe, [code], **call)
    next(run)
    run.close()
    handle.remove()
    assert len(seen) == 1 and case.pipe.scheduler is scheduler


# --- few steps ---


def test_one_closed_step_of_schnell_is_the_tuned_model_alone(case):
    case, shares = case("flux-schnell"), schedules.shares("power_2", 1, closed=True)
    assert shares == (1.0,)
    with annealed(case.pipe, shares, case.twin) as ledger:
        one = case.run(case.pipe, 1, num_inference_steps=1)
    with case.using(case.twin) as pipe:
        assert torch.equal(one, case.run(pipe, 1, num_inference_steps=1))
    assert ledger.rows == {"base": 0, "tuned": 1}
    assert result(case.pipe, columns("power_2", steps=1, closed=True), tuned=case.twin, **CALL | {"steps": 1}).rows == 2


@pytest.mark.parametrize("name", ["flux-schnell", "sd"])
def test_four_closed_steps_end_with_the_tuned_model(case, name):
    """FLUX.1-schnell, and a latent consistency model, whose sampler draws noise at every step."""
    case, shares = case(name), schedules.shares("power_2", 4, closed=True)
    assert shares[0] == 0 and shares[-1] == 1 and case.pipe.scheduler is not None
    stock = case.pipe.scheduler
    try:
        if name == "sd":
            case.pipe.scheduler = LCMScheduler.from_config(stock.config)
        call = {"num_inference_steps": 4, "guidance_scale": 1.0}
        expected = case.naive(case.twin, shares, 1, 2, **call)
        with annealed(case.pipe, shares, case.twin) as ledger:
            torch.testing.assert_close(case.run(case.pipe, 1, 2, **call), expected, **CLOSE)
        ours = result(case.pipe, columns("power_2", steps=4, closed=True), tuned=case.twin, **CALL | {"steps": 4, "guidance": 1.0})
    finally:
        case.pipe.scheduler = stock
    assert ledger.rows == {"base": 2 * 3, "tuned": 2 * 3}
    torch.testing.assert_close(ours.images[0], decode(case.pipe, expected, range(2)), atol=1e-3, rtol=0)


# --- facts ---


@every
def test_the_size_is_the_model_s_own_unless_told(case, name):
    pipe, size = case(name).pipe, families.size(name)
    assert facts.default_size(pipe) == (size, size)
    noise = initial_latents(pipe, [1, 2])
    assert noise.shape == (2, *facts.latent_shape(pipe)) and facts.latent_shape(pipe, 2 * size)[1:] == (16, 16)
    with pytest.raises(ValueError, match=f"positive multiple of .* not {size - 1}"):
        initial_latents(pipe, [1], size - 1)
    torch.testing.assert_close(facts.unpacked(pipe, facts.laid_out(pipe, noise)), noise)


@pytest.mark.parametrize("name", ["sd", "flux", "sana"])
def test_another_size(case, name):
    case, size = case(name), 2 * families.size(name)
    frame = result(case.pipe, columns("draft"), tuned=case.twin, size=size, **CALL)
    assert frame.images.shape == (1, 2, 3, size, size)


@every
def test_decoding_in_chunks_equals_decoding_at_once(case, name):
    pipe = case(name).pipe
    latents = facts.laid_out(pipe, initial_latents(pipe, range(3)))
    whole = decode(pipe, latents, [0, 1, 2, 1])
    torch.testing.assert_close(decode(pipe, latents, [0, 1, 2, 1], 2), whole, atol=1e-5, rtol=0)
    assert torch.equal(whole[1], whole[3])


def test_half_precision_decoding_of_sdxl_is_done_in_float32(case):
    pipe = families.build("sdxl")
    latents = initial_latents(pipe, [1])
    expected = decode(pipe, latents, [0])
    pipe.vae.to(torch.float16)
    seen = []
    handle = pipe.vae.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    images = decode(pipe, latents.half(), [0])
    handle.remove()
    assert seen == [torch.float32] and pipe.vae.dtype == torch.float16 and images.dtype == torch.float32
    torch.testing.assert_close(images, expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", ["sdxl", "flux", "sana"])
def test_bfloat16_runs_end_as_the_tuned_model_does(case, name):
    pipe, twin = families.build(name).to(torch.bfloat16), families.tuned(case(name).pipe).to(torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    call = CALL | {"steps": 20, "seeds": [1]}
    frame = result(pipe, columns("linear", "draft", steps=20), tuned=twin, **call)
    assert torch.isfinite(frame.images).all() and (frame.images[0] - frame.images[1]).abs().max() > 1e-3


def test_flows_are_recognised():
    assert isinstance(facts.stochastic(families.build("sana").scheduler), FlowMatchEulerDiscreteScheduler)
