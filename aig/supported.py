"""What keeps two denoisers from being mixed exactly: said in one sentence before anything is sampled, or carried over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from diffusers import DiffusionPipeline
from torch import nn

SAME_NUMBERS = ("group_offloading", "layerwise_casting", "context_parallel", "tensor_parallel", "tensor_parallel_neuron")
FREEU = ("s1", "s2", "b1", "b2")


def check(denoiser: nn.Module, twins: Iterable[nn.Module]) -> None:
    """ValueError unless the denoiser keeps no state between calls, and its twins are set as it is."""
    base = _hooks(denoiser)
    for model in (denoiser, *twins):
        hooks = _hooks(model)
        kept = [hook for hook in hooks.values() if hook._is_stateful]
        if cache := next(iter(kept), getattr(model, "_cache_config", None)):
            raise ValueError(
                f"a cache is enabled ({type(cache).__name__}), which would answer for one model with what the other computed: "
                "call disable_cache() on the denoiser first"
            )
        if {at: type(hook) for at, hook in hooks.items()} != {at: type(hook) for at, hook in base.items()}:
            raise ValueError(f"{sorted(hooks.keys() ^ base.keys())[0]!r} is a hook of one of the two denoisers alone: apply it to both")
        if _freeu(model) != _freeu(denoiser):
            raise ValueError("FreeU is enabled for one of the two denoisers alone: call enable_freeu() on both, or on neither")
        if _adapters(model) != _adapters(denoiser):
            raise ValueError("the two denoisers have different IP-Adapters or scales of them: load the tuning as a LoRA, or set both alike")
        if model is not denoiser and any(type(part).__name__ == "GatedSelfAttentionDense" for part in denoiser.modules()):
            raise ValueError("GLIGEN switches layers of its own denoiser alone: load the tuning as a LoRA instead of a second denoiser")


@contextmanager
def mirrored(denoiser: nn.Module, twins: Iterable[nn.Module]) -> Iterator[Callable[[], None]]:
    """A function that hands the twins every attention processor that the denoiser has been given since (PAG does so in
    its call); they have their own again afterwards."""
    before, own = _processors(denoiser), [(twin, _processors(twin)) for twin in twins]

    def follow() -> None:
        given = {name: p for name, p in _processors(denoiser).items() if p is not before.get(name)} if own else {}
        for twin, processors in own:
            if missing := given.keys() - processors.keys():
                raise ValueError(f"the pipeline changes the attention of {min(missing)!r}, which the tuned denoiser does not have")
            _set(twin, processors | given)

    try:
        yield follow
    finally:
        for twin, processors in own:
            _set(twin, processors)


def only(pipe: DiffusionPipeline, denoisers: dict[str, nn.Module]) -> None:
    """ValueError when the pipeline has several denoisers, of which a second model would replace one."""
    if len(denoisers) > 1:
        raise ValueError(
            f"{type(pipe).__name__} has several denoisers, {' and '.join(denoisers)}, and tuned stands for one: load the tuning into the "
            "pipeline as a LoRA"
        )


def plain(module: nn.Module) -> nn.Module:
    """The module inside of one that torch.compile has wrapped."""
    return getattr(module, "_orig_mod", module)


def unhooked(denoiser: nn.Module) -> nn.Module:
    """The denoiser. ValueError when something stands before its layers' forward that a copy would share, or that keeps
    weights elsewhere or in few bits."""
    for name, part in denoiser.named_modules():
        if getattr(vars(part).get("_diffusers_hook"), "hooks", None) or "_hf_hook" in vars(part):
            raise ValueError(
                f"{name or 'the denoiser'} is hooked (layerwise casting, offloading, a cache): add the LoRA first, then the hooks"
            )
    return denoiser


def _hooks(model: nn.Module) -> dict[str, object]:
    """Where and what: those of diffusers that change an answer."""
    return {
        f"{name}.{key}".lstrip("."): hook
        for name, part in model.named_modules()
        for key, hook in getattr(vars(part).get("_diffusers_hook"), "hooks", {}).items()
        if type(hook).__module__.rpartition(".")[2] not in SAME_NUMBERS
    }


def _freeu(model: nn.Module) -> dict[str, object]:
    parts = ((name, part) for name, part in model.named_modules() if vars(part).get("s1") is not None)
    return {f"{name}.{key}": vars(part).get(key) for name, part in parts for key in FREEU}


def _adapters(model: nn.Module) -> dict[str, object]:
    """The scales of attention processors with weights of their own."""
    weighted = {name: p for name, p in _processors(model).items() if isinstance(p, nn.Module) and next(p.parameters(), None) is not None}
    return {name: str(getattr(processor, "scale", None)) for name, processor in weighted.items()}


def _processors(model: nn.Module) -> dict[str, object]:
    return {name: part.processor for name, part in model.named_modules() if hasattr(part, "set_processor") and hasattr(part, "processor")}


def _set(model: nn.Module, processors: dict[str, object]) -> None:
    for name, processor in processors.items():
        part = model.get_submodule(name)
        if part.processor is not processor:
            part.set_processor(processor)
