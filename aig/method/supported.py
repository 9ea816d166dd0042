"""What keeps two denoisers from being mixed exactly: said in one sentence before anything is sampled, or carried over."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

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
        if alone := sorted(at for at in hooks.keys() | base.keys() if _settings(hooks.get(at)) != _settings(base.get(at))):
            raise ValueError(f"{alone[0]!r} is a hook of one of the two denoisers alone, or set otherwise: apply it to both alike")
        if _freeu(model) != _freeu(denoiser):
            raise ValueError("FreeU is enabled for one of the two denoisers alone: call enable_freeu() on both, or on neither")
        if _adapters(model) != _adapters(denoiser):
            raise ValueError("the two denoisers have different IP-Adapters or scales of them: load the tuning as a LoRA, or set both alike")
        if model is not denoiser and any(type(part).__name__ == "GatedSelfAttentionDense" for part in denoiser.modules()):
            raise ValueError("GLIGEN switches layers of its own denoiser alone: load the tuning as a LoRA instead of a second denoiser")


class Attention:
    """The attention processors of a denoiser and of its twins. Both are walked once; a look at the processors costs little."""

    def __init__(self, denoiser: nn.Module, twins: Iterable[nn.Module]) -> None:
        self.parts, *self.twins = ([*_attention(plain(model)).items()] for model in (denoiser, *twins))
        self.all = [part for model in (self.parts, *self.twins) for _, part in model]
        self.before = self.seen = [part.processor for part in self.all]
        self.rowwise = _rowwise(self.seen)  # whether every answer to a row depends on that row alone

    def follow(self) -> None:
        """Hand the twins every processor that the denoiser has been given since the beginning (PAG does so in its call)."""
        if all(part.processor is seen for part, seen in zip(self.all, self.seen)):
            return
        given = {name: part.processor for (name, part), old in zip(self.parts, self.before) if part.processor is not old}
        for twin in map(dict, self.twins):
            if missing := given.keys() - twin.keys():
                raise ValueError(f"the pipeline changes the attention of {min(missing)!r}, which the tuned denoiser does not have")
        self.restore(len(self.parts))
        for twin in map(dict, self.twins):
            for name, processor in given.items():
                twin[name].set_processor(processor)
        self.seen = [part.processor for part in self.all]
        self.rowwise = _rowwise(self.seen)

    def restore(self, beginning: int) -> None:
        """Give all parts from this one on the processors that they had at the beginning."""
        for part, processor in zip(self.all[beginning:], self.before[beginning:]):
            if part.processor is not processor:
                part.set_processor(processor)


@contextmanager
def mirrored(denoiser: nn.Module, twins: Iterable[nn.Module]) -> Generator[Attention]:
    """The attention of a denoiser and of its twins, which have their own processors again afterwards."""
    attention = Attention(denoiser, twins)
    try:
        yield attention
    finally:
        attention.restore(len(attention.parts))


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


def _hooks(model: nn.Module) -> dict[str, Any]:
    """Where and what: those of diffusers that change an answer."""
    return {
        f"{name}.{key}".lstrip("."): hook
        for name, part in model.named_modules()
        for key, hook in getattr(vars(part).get("_diffusers_hook"), "hooks", {}).items()
        if type(hook).__module__.rpartition(".")[2] not in SAME_NUMBERS
    }


def _settings(hook: object | None) -> tuple[type, dict[str, object]]:
    """Its kind, and the numbers and words that it was made with."""
    return type(hook), {name: value for name, value in getattr(hook, "__dict__", {}).items() if isinstance(value, (int, float, str))}


def _freeu(model: nn.Module) -> dict[str, object]:
    parts = ((name, part) for name, part in model.named_modules() if vars(part).get("s1") is not None)
    return {f"{name}.{key}": vars(part).get(key) for name, part in parts for key in FREEU}


def _adapters(model: nn.Module) -> dict[str, object]:
    """The scales of attention processors with weights of their own."""
    weighted = {name: p for name, p in _processors(model).items() if isinstance(p, nn.Module) and next(p.parameters(), None) is not None}
    return {name: str(getattr(processor, "scale", None)) for name, processor in weighted.items()}


def _processors(model: nn.Module) -> dict[str, object]:
    return {name: part.processor for name, part in _attention(model).items()}


def _attention(model: nn.Module) -> dict[str, Any]:
    """The layers that have a processor."""
    return {name: part for name, part in model.named_modules() if hasattr(part, "set_processor") and hasattr(part, "processor")}


def _rowwise(processors: Iterable[object]) -> bool:
    """Whether they are all diffusers' own and none mixes rows, as PAG's do."""
    return all(type(p).__module__.startswith("diffusers.models.") and "PAG" not in type(p).__name__ for p in processors)
