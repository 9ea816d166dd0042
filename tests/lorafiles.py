"""LoRA files made of random halves in several trainers' formats, and what stock diffusers makes of a file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aig.method import adapters
from aig.published import loras
from tests import families

RANK, ALPHA = 2, 1.5  # a strength of 0.75
Sizes = dict[str, tuple[int, ...]]  # a layer's name -> the shape of its weight
Pairs = Mapping[str, tuple[Tensor, Tensor]]  # a layer's name -> its halves, down and up


def weights(module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def stock(pipe, path: Path) -> dict[str, Tensor]:
    """The denoiser's weights after the stock way to load and fuse a file; the pipeline stays as it is."""
    other = copy.copy(pipe)
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    setattr(other, part, copy.deepcopy(families.denoiser(pipe)))
    other.load_lora_weights(str(path.parent), weight_name=path.name)
    other.fuse_lora()
    other.unload_lora_weights()
    return weights(families.denoiser(other))


def assert_same_tuning(pipe, path: Path, expected: dict[str, Tensor]) -> None:
    base, twin = (
        weights(families.denoiser(pipe)),
        weights(adapters.fused(families.denoiser(pipe), loras.read(path, pipe))),
    )
    assert twin.keys() == expected.keys()
    assert max((expected[name] - base[name]).abs().max() for name in base) > 0.01
    for name in base:
        torch.testing.assert_close(twin[name], expected[name], atol=1e-5, rtol=1e-4)


def saved(path: Path, tensors: Mapping[str, Tensor], metadata: dict | None = None) -> Path:
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def flux_sizes(width: int) -> Sizes:
    """The linear layers of a FLUX of one double and one single block, by Black Forest Labs' names."""
    ends = {"img_in": 16, "txt_in": 32, "time_in.in_layer": 256, "vector_in.in_layer": 16, "guidance_in.in_layer": 256}
    sizes = {name: (width, inner) for name, inner in ends.items()}
    sizes |= {f"{name}_in.out_layer": (width, width) for name in ("time", "vector", "guidance")}
    for side in ("img", "txt"):
        sizes |= {
            f"double_blocks.0.{side}_mod.lin": (6 * width, width),
            f"double_blocks.0.{side}_attn.qkv": (3 * width, width),
            f"double_blocks.0.{side}_attn.proj": (width, width),
            f"double_blocks.0.{side}_mlp.0": (4 * width, width),
            f"double_blocks.0.{side}_mlp.2": (width, 4 * width),
        }
    return sizes | {
        "single_blocks.0.linear1": (7 * width, width),
        "single_blocks.0.linear2": (width, 5 * width),
        "single_blocks.0.modulation.lin": (3 * width, width),
        "final_layer.linear": (16, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }


@cache
def pipeline(family: str):
    return families.build(family)


def halves(sizes: Sizes) -> dict[str, tuple[Tensor, Tensor]]:
    """Seeded random halves; ``up`` of a convolution is 1 x 1 as trainers write it."""
    torch.manual_seed(3)
    return {name: (torch.randn(RANK, *shape[1:]), torch.randn(shape[0], RANK, *(1,) * (len(shape) - 2))) for name, shape in sizes.items()}


def product(down: Tensor, up: Tensor, strength: float = 1.0) -> Tensor:
    return strength * torch.einsum("or,r...->o...", up.flatten(1), down)


def in_kohya(pairs: Pairs, front: str = "lora_unet_", alpha: float | None = ALPHA) -> dict[str, Tensor]:
    tensors = {}
    for name, (down, up) in pairs.items():
        name = front + name.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors |= {} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)}
    return tensors


def in_peft(pairs: Pairs, front: str, middle: str = "") -> dict[str, Tensor]:
    return {f"{front}{name}.lora_{half}{middle}.weight": tensor for name, pair in pairs.items() for half, tensor in zip("AB", pair)}


def assert_reads(pipe, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path) -> None:
    """The file changes exactly the expected layers, by exactly so much; fused and switched alike."""
    path = saved(folder / "lora.safetensors", tensors)
    denoiser = families.denoiser(pipe)
    found = adapters.increments(denoiser, loras.read(path, pipe))
    assert found.keys() == expected.keys()
    for layer, increment in expected.items():
        torch.testing.assert_close(found[layer], increment.view_as(found[layer]), atol=1e-5, rtol=1e-5)


def own_layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in denoiser.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))}


def own_halves(denoiser: nn.Module) -> Pairs:
    """Halves for all layers of a denoiser, by diffusers' names."""
    return halves({name: tuple(part.weight.shape) for name, part in own_layers(denoiser).items()})
