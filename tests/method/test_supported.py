"""What cannot be mixed exactly is refused in one sentence before a model is asked; what can be carried over is the naive mix."""

from __future__ import annotations

import copy
from dataclasses import replace

import diffusers as d
import pytest
import torch
from peft import LoraConfig
from torch import nn

from aig.method import adapters, supported
from aig.method.guidance import annealed
from aig.method.rows import Answer, Call
from tests import families
from tests.method.test_stock import built, naive, run
from tests.stock import VIDEO, Stock, prompts, wan_model

G = (0.0, 0.5, 1.0)
LORA = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"])

CACHES = {
    "first block": d.FirstBlockCacheConfig(threshold=0.1),
    "pyramid": d.PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500),
    "faster": d.FasterCacheConfig(current_timestep_callback=lambda: 500, tensor_format="BCHW"),
    "mag": d.MagCacheConfig(num_inference_steps=3, mag_ratios=[1.0] * 3),
    "taylor": d.TaylorSeerCacheConfig(),
}


def fresh(name: str) -> Stock:
    stock, _ = built(name)
    part = "unet" if "unet" in stock.pipe.components else "transformer"
    pipe = copy.copy(stock.pipe)
    setattr(pipe, part, copy.deepcopy(adapters.denoiser(pipe)))
    return replace(stock, pipe=pipe)


def with_lora(stock: Stock, *models: nn.Module) -> list[nn.Module]:
    """LoRAs on the models, and the same tuning as models of their own."""
    twins = []
    for seed, model in enumerate(models or [adapters.denoiser(stock.pipe)]):
        twin, state = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        model.add_adapter(LORA)
        for layer_name, layer in list(model.named_modules()):
            if hasattr(layer, "lora_A"):
                for half in (layer.lora_A, layer.lora_B):
                    half["default"].weight.data = 0.5 * torch.randn(half["default"].weight.shape, generator=state)
                increment = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
                twin.get_parameter(f"{layer_name}.weight").data += increment.detach()
        twins.append(twin)
    return twins


def refused(stock: Stock, message: str, *args: object, **options: object) -> None:
    """By annealed or in the call, in one sentence and before any model has answered."""
    denoiser, answered = adapters.denoiser(stock.pipe), []
    before = vars(denoiser).get("forward")
    handle = next(iter(denoiser.children())).register_forward_hook(lambda *_: answered.append(1))
    with pytest.raises(ValueError, match=message) as caught, annealed(stock.pipe, *args, **options):
        run(stock, 1)
    handle.remove()
    assert "\n" not in str(caught.value) and not answered and vars(denoiser).get("forward") is before


# --- caches ---


@pytest.mark.parametrize("name", CACHES)
def test_caches_are_refused_in_either_model(name: str) -> None:
    for cached in (0, 1):
        stock = fresh("cogvideox")
        twin = copy.deepcopy(stock.pipe.transformer)
        (stock.pipe.transformer, twin)[cached].enable_cache(CACHES[name])
        refused(stock, r"a cache is enabled \(\w+\), .* call disable_cache\(\)", G, twin)


def test_every_cache_of_diffusers_has_a_hook_that_says_so() -> None:
    """Those without a case above need models that have no tiny pipeline here."""
    for name in ("sea_cache.SeaCacheRootHook", "text_kv_cache.TextKVCacheTransformerHook", "text_kv_cache.TextKVCacheBlockHook"):
        module, _, hook = name.partition(".")
        assert getattr(__import__(f"diffusers.hooks.{module}", fromlist=[hook]), hook)._is_stateful
    stock = fresh("cogvideox")
    with_lora(stock)
    stock.pipe.transformer.enable_cache(CACHES["first block"])
    refused(stock, "a cache is enabled", G)


def test_objects_that_two_models_would_share_are_refused() -> None:
    x = torch.zeros(2, 4)
    for value, kind in ((object(), "object"), ([object()], "object")):
        with pytest.raises(ValueError, match=f"gives its denoiser thing of type {kind}, which cannot be given to two models"):
            Call.of({"hidden_states": x, "thing": value})
    for value in ({}, [x], x):
        with pytest.raises(ValueError, match="gives its denoiser kv_cache of type"):
            Call.of({"hidden_states": x, "kv_cache": value})
    assert Call.of({"hidden_states": x, "kv_cache": None, "kv_cache_mode": "read"}).rows == 2


# --- one LoRA file, hooks ---


def test_nothing_is_fused_into_a_hooked_denoiser(pipe, lora_file) -> None:
    def layerwise(unet):
        unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)

    def groups(unet):
        unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")

    def accelerated(unet):
        from accelerate.hooks import ModelHook, add_hook_to_module

        add_hook_to_module(unet.conv_in, ModelHook())

    from safetensors.torch import load_file

    for hook in (layerwise, groups, accelerated):
        unet = copy.deepcopy(pipe.unet)
        hook(unet)
        for fuse in (lambda unet=unet: adapters.fused(unet, lora_file), lambda unet=unet: adapters.switched(unet, load_file(lora_file))):
            with pytest.raises(ValueError, match="is hooked .*: add the LoRA first, then the hooks"):
                fuse()


def test_layerwise_casting_of_both_models_is_mixed() -> None:
    stock = fresh("stable_diffusion")
    (twin,) = with_lora(stock)
    twin.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    base = copy.deepcopy(built("stable_diffusion")[0].pipe.unet)
    base.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    stock.pipe.unet = base
    with annealed(stock.pipe, G, twin):
        mixed = run(stock, 1)[0]
    torch.testing.assert_close(mixed, naive(stock, twin, G, 1), atol=1e-3, rtol=1e-3)


# --- what the pipeline or its owner does to the one denoiser ---


def test_attention_set_in_the_call_reaches_the_twin_and_goes_again() -> None:
    stock, twin = built("pag")
    own = dict(twin.attn_processors)
    with annealed(stock.pipe, G, twin):
        mixed = run(stock, 1)[0]
    assert all(processor is own[name] for name, processor in twin.attn_processors.items())
    with annealed(stock.pipe, [1.0] * 3, twin):
        ends = run(stock, 1)
    pipe = copy.copy(stock.pipe)
    pipe.unet = twin
    assert torch.equal(ends, run(replace(stock, pipe=pipe), 1))
    assert (mixed - ends[0]).abs().max() > 1e-2


def test_freeu_on_one_of_two_models_is_refused() -> None:
    stock = fresh("stable_diffusion")
    stock.pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    refused(stock, "FreeU is enabled for one of the two denoisers alone", G, built("stable_diffusion")[1])
    twin = copy.deepcopy(stock.pipe.unet)
    with annealed(stock.pipe, G, twin):  # two models that are one
        assert torch.allclose(run(stock, 1), run(stock, 1), atol=1e-4)


def test_an_ip_adapter_of_one_model_is_refused() -> None:
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    stock = fresh("stable_diffusion")
    name = next(name for name in stock.pipe.unet.attn_processors if "attn2" in name)
    processors = stock.pipe.unet.attn_processors | {name: IPAdapterAttnProcessor2_0(hidden_size=16, cross_attention_dim=8)}
    stock.pipe.unet.set_attn_processor(processors)
    twin = copy.deepcopy(stock.pipe.unet)
    refused(stock, "different IP-Adapters or scales", G, built("stable_diffusion")[1])
    supported.check(stock.pipe.unet, [twin])
    twin.attn_processors[name].scale = [0.5]
    with pytest.raises(ValueError, match="different IP-Adapters or scales"):
        supported.check(stock.pipe.unet, [twin])


def test_skipped_layers_of_one_model_are_refused() -> None:
    from diffusers.hooks import LayerSkipConfig, apply_layer_skip

    stock = fresh("cogvideox")
    twin = copy.deepcopy(stock.pipe.transformer)
    apply_layer_skip(stock.pipe.transformer, LayerSkipConfig(indices=[0], fqn="transformer_blocks"))
    sentence = "is a hook of one of the two denoisers alone, or set otherwise: apply it to both alike"
    refused(stock, sentence, G, twin)
    apply_layer_skip(twin, LayerSkipConfig(indices=[0], fqn="transformer_blocks", dropout=0.5))
    refused(stock, sentence, G, twin)


@pytest.mark.parametrize("name", ["t2i_adapter", "pag"])
def test_a_lora_is_mixed_as_two_models_are(name: str) -> None:
    stock = fresh(name)
    base = copy.deepcopy(stock.pipe.unet)
    (twin,) = with_lora(stock)
    with annealed(stock.pipe, G):
        mixed = run(stock, 1)[0]
    stock.pipe.unet = base
    torch.testing.assert_close(mixed, naive(stock, twin, G, 1), atol=1e-3, rtol=1e-3)


# --- several denoisers ---


def wan22() -> Stock:
    """Its first transformer has the steps of much noise, its second the others: one and two of three."""
    torch.manual_seed(0)
    scheduler = d.FlowMatchEulerDiscreteScheduler()
    pipe = d.WanPipeline(None, None, None, scheduler, wan_model().eval(), wan_model().eval(), boundary_ratio=0.875)
    pipe.set_progress_bar_config(disable=True)
    for model in (pipe.transformer, pipe.transformer_2):
        families._stir(model, 0.2)
    return Stock(pipe=pipe, call=lambda b: prompts(4, 8)(b) | VIDEO, calls=2)


def test_a_second_denoiser_is_mixed_by_its_lora_and_refuses_a_single_twin() -> None:
    stock = wan22()
    refused(stock, "WanPipeline has several denoisers, transformer and transformer_2, and tuned stands for one", G, wan_model())
    models = stock.pipe.transformer, stock.pipe.transformer_2
    plain = [copy.deepcopy(model) for model in models]
    twins = with_lora(stock, *models)
    shares = (0.4, 0.7, 0.2)
    with annealed(stock.pipe, [[g, g / 2] for g in shares]) as ledger:
        together = run(stock, 1, 2)
    assert ledger.rows == {"base": 12, "tuned": 12}

    turn = iter([g for g in shares for _ in range(2)])  # the call without prompt is one of its own
    stock.pipe.transformer, stock.pipe.transformer_2 = plain
    called = []
    for base, twin in zip(plain, twins):

        def forward(*args, base=base.forward, twin=twin, **kwargs):
            g = next(turn)
            called.append(twin)
            a, b = (model(*copy.deepcopy(args), **copy.deepcopy(kwargs))[0] for model in (base, twin))
            return ((1 - g) * a + g * b,)

        base.forward = forward
    torch.testing.assert_close(together[0], run(stock, 1)[0], atol=1e-3, rtol=1e-3)
    assert set(called) == set(twins) and next(turn, None) is None


@pytest.mark.parametrize("tuned", ["transformer", "transformer_2"])
def test_a_lora_on_one_of_two_denoisers_counts_the_steps_of_both(tuned: str) -> None:
    stock, shares = wan22(), (0.4, 0.7, 0.2)
    plain = copy.deepcopy(getattr(stock.pipe, tuned))
    (twin,) = with_lora(stock, getattr(stock.pipe, tuned))
    with annealed(stock.pipe, shares) as ledger:
        mixed = run(stock, 1)
    assert ledger.rows["tuned"] == {"transformer": 2, "transformer_2": 4}[tuned]  # one and two steps, a call a branch
    turn = iter([g for g in {"transformer": shares[:1], "transformer_2": shares[1:]}[tuned] for _ in range(2)])
    base = plain.forward

    def forward(*args, **kwargs):
        a, b = (model(*copy.deepcopy(args), **copy.deepcopy(kwargs))[0] for model in (base, twin))
        g = next(turn)
        return ((1 - g) * a + g * b,)

    plain.forward = forward
    setattr(stock.pipe, tuned, plain)
    torch.testing.assert_close(mixed, run(stock, 1), atol=1e-3, rtol=1e-3)
    assert next(turn, None) is None


def test_steps_of_copied_schedulers_are_refused() -> None:
    """SkyReels denoises every frame by a scheduler of its own."""
    model = d.SkyReelsV2Transformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=16, ffn_dim=16, num_layers=1,
        rope_max_seq_len=32,
    )  # fmt: skip
    scheduler = d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    pipe = d.SkyReelsV2DiffusionForcingPipeline(None, None, model.eval(), None, scheduler)
    pipe.set_progress_bar_config(disable=True)
    stock = Stock(pipe=pipe, call=lambda b: prompts(4, 8)(b) | VIDEO | {"prompt": None, "base_num_frames": 5})
    with pytest.raises(ValueError, match="SkyReelsV2DiffusionForcingPipeline goes on to another timestep without a step of its scheduler"):
        with annealed(pipe, G, copy.deepcopy(model)):
            run(stock, 1)


def test_denoisers_are_found_by_what_they_are() -> None:
    assert list(adapters.denoisers(wan22().pipe)) == ["transformer", "transformer_2"]
    assert list(adapters.denoisers(built("animatediff")[0].pipe)) == ["unet"]
    assert list(adapters.denoisers(built("controlnet")[0].pipe)) == ["unet"]


# --- branches ---


def test_guided_and_texts_need_to_know_where_the_prompt_is() -> None:
    for name in ("pix2pix", "lumina", "wan"):
        stock, twin = built(name)
        kind = type(stock.pipe).__name__
        for change in ({"guided": [[False]] * 3}, {"texts": [lambda i, y: y]}):
            refused(stock, f"which of {kind}'s predictions have the prompt is not known", G, twin, **change)
        with annealed(stock.pipe, G, twin, guided=[[True]] * 3, texts=[None]) as ledger:  # nothing that needs it
            run(stock, 1)
        assert ledger.total


def test_guidance_with_another_call_is_refused_for_guided() -> None:
    stock, twin = built("sd3_skips_layers")
    with pytest.raises(ValueError, match="StableDiffusion3Pipeline asks for a prediction beside its guidance"):
        with annealed(stock.pipe, G, twin, guided=[[False]] * 3):
            run(stock, 1)


@pytest.mark.parametrize("name", ["pix2pix", "cogview4", "ltx", "lumina", "animatediff"])
@pytest.mark.parametrize("images", [1, 3, 4])
def test_the_images_are_counted_whatever_the_branches(name: str, images: int) -> None:
    """By the latents that the scheduler gets at its first step, so no picture is made."""
    stock, twin = built(name)
    steps = []
    with pytest.raises(ValueError, match=f"weights for {images} images, but the pipeline runs 2"):
        with annealed(stock.pipe, [[0.0] * images] * 3, twin, groups=range(images)):
            run(stock, 1, 2, **({} if name == "lumina" else {"callback_on_step_end": lambda *_: steps.append(1) or {}}))
    assert not steps


@pytest.mark.parametrize("name", ["stable_diffusion", "lumina2", "cogvideox", "animatediff"])
def test_rows_are_shared_and_cut_into_chunks_everywhere(name: str) -> None:
    """Images of one group are computed once until they part, whatever a call holds."""
    stock, twin = built(name)
    shares, results = [(0.0, 0.0, 0.2), (0.0, 1.0, 0.4), (0.5, 1.0, 0.6)], []
    for options in ({}, {"groups": [0, 0, 1]}, {"rows_at_once": 2}):
        with annealed(stock.pipe, shares, twin, **options) as ledger:
            results.append(run(stock, 7, 7, 8))
        once = options.get("groups") is not None
        # base: 2 or 3, 2, 2 of the three images; tuned: 1, 2, 3 (images 0 and 1 part in the second step)
        assert ledger.rows == {"base": 2 * (2 + 2 + 2) if once else 2 * (3 + 2 + 2), "tuned": 2 * (1 + 2 + 3)}
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-3, rtol=1e-3)


def test_rows_that_belong_together_are_not_cut() -> None:
    stock, twin = built("pag")
    with pytest.raises(ValueError, match="this model's 6 rows belong together: rows_at_once must be None, not 2"):
        with annealed(stock.pipe, [0.5] * 3, twin, rows_at_once=2):
            run(stock, 1, 2)


# --- outputs ---


def test_everything_that_a_model_returns_is_mixed() -> None:
    video, audio = torch.zeros(2, 3), torch.ones(4, 5)  # two rows, the second with two entries each
    answer = Answer.of((video, audio, None, [torch.zeros(3), torch.ones(3)]), 2)
    assert [len(t) for t in answer.tensors] == [2, 4, 2]
    swapped = answer.arranged([1, 0, 1])
    back = swapped.like([t + 1 for t in swapped.tensors])
    assert back[2] is None and isinstance(back[3], list) and torch.equal(back[3][0], torch.full((3,), 2.0)) and len(back[1]) == 6
    output = d.models.modeling_outputs.Transformer2DModelOutput(sample=video)
    made = (answer := Answer.of(output, 2)).like([answer.tensors[0] + 1])
    assert type(made) is type(output) and torch.equal(made.sample, video + 1)
    for strange in (object(), (torch.zeros(3),), (None,)):
        with pytest.raises(ValueError, match="that are not 2 rows of numbers"):
            Answer.of(strange, 2)


# --- torch.compile ---


def test_compiled_modules_are_mixed() -> None:
    """Wrapped as torch.compile wraps them; their code is not compiled here, which takes long and is torch's concern."""
    stock, twin = built("cogvideox")
    expected, pipe = naive(stock, twin, G, 1), copy.copy(stock.pipe)
    pipe.transformer = torch.compile(stock.pipe.transformer, backend="eager")
    compiled = replace(stock, pipe=pipe)
    before = vars(pipe.transformer)["forward"]
    for tuned in (twin, torch.compile(twin, backend="eager")):
        with torch.compiler.set_stance("force_eager"), annealed(pipe, G, tuned) as ledger:
            torch.testing.assert_close(run(compiled, 1)[0], expected, atol=1e-3, rtol=1e-3)
        assert ledger.rows == {"base": 4, "tuned": 4} and vars(pipe.transformer)["forward"] is before
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(run(compiled, 1), run(stock, 1))
