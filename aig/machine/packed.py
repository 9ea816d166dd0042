"""Layers on a CPU that keep a second copy of their weights, made for quick use: packed as oneDNN lays them out, or in bfloat16.

Packed convolutions give the same numbers up to rounding, in about 0.95 of the time (two cores, 8 to 16 rows of the embedded
world's UNet). torch.compile packs weights in this way too, but needs a compiler and a minute at the first call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Prepared:
    """For a convolution or linear layer: its weights as they are multiplied, made anew when a weight or the precision changes.

    torch tells nobody of writes through ``weight.data``, as peft's merging makes them: fuse a LoRA before layers are prepared.
    """

    weight: Tensor
    bias: Tensor | None
    multiplies_in = torch.float32

    def _plainly(self, input: Tensor) -> bool:
        """Whether this call goes torch's own way: with gradients, on a GPU, or in another type than float32."""
        differentiated = torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)
        return differentiated or self.weight.is_inference() or input.dtype != torch.float32 or input.is_cuda

    def _prepared(self, shape: torch.Size, pack: bool) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in the type that is multiplied in, the weight packed for inputs of this shape if asked."""
        made_of, dtype = (self.weight, self.bias), self.multiplies_in
        version = (*(None if part is None else part._version for part in made_of), dtype, shape[1:] if pack else None)
        kept = vars(self).get("_prepared_from")
        if kept is None or kept[0][0] is not self.weight or kept[0][1] is not self.bias or kept[1] != version:
            ready, bias = self.weight.detach().to(dtype), None if self.bias is None else self.bias.detach().to(dtype, copy=True)
            if pack:  # for this shape: else processors without AVX512 expect another layout and convert it at every call
                ready = torch.ops.mkldnn._reorder_convolution_weight(ready, *self._geometry(), list(shape))
            self._prepared_weights, self._prepared_from = (ready, bias), (made_of, version)
        return self._prepared_weights

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Padding, stride, dilation and groups of a convolution."""
        raise NotImplementedError

    def __getstate__(self) -> dict:
        """Copies prepare for themselves."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_prepared_")}


class PackedConv2d(Prepared, nn.Conv2d):
    """An ``nn.Conv2d`` with a packed copy of its weight for use without gradients."""

    def forward(self, input: Tensor) -> Tensor:
        if self._plainly(input):
            return super().forward(input)
        pack = can_pack(self.multiplies_in)
        weight, bias = self._prepared(input.shape, pack)
        input = input.to(self.multiplies_in)
        if pack:
            return torch.ops.mkldnn._convolution_pointwise(input, weight, bias, *self._geometry(), "none", [], "").float()
        return functional.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups).float()

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        assert not isinstance(self.padding, str)  # ``_become`` leaves such layers alone
        return list(self.padding), list(self.stride), list(self.dilation), self.groups


class NarrowLinear(Prepared, nn.Linear):
    """An ``nn.Linear`` that may multiply in bfloat16."""

    def forward(self, input: Tensor) -> Tensor:
        if self.multiplies_in == torch.float32 or self._plainly(input):
            return super().forward(input)
        weight, bias = self._prepared(input.shape, False)
        return functional.linear(input.to(self.multiplies_in), weight, bias).float()


def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of torch packs convolutions on this processor (CPU, oneDNN)."""
    possible = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return possible and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed(module: nn.Module) -> nn.Module:
    """The module, its plain convolutions packed where that is possible; weights and names stay."""
    for part in module.modules() if can_pack() else ():
        _become(part, nn.Conv2d, PackedConv2d)
    return module


def multiply_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module, its plain convolutions and linear layers multiplying in float32 or bfloat16; all else stays float32."""
    for part in module.modules():
        if dtype != torch.float32:
            _become(part, nn.Conv2d, PackedConv2d)
            _become(part, nn.Linear, NarrowLinear)
        if isinstance(part, Prepared):
            part.multiplies_in = dtype
    return module


def _become(part: nn.Module, plain: type[nn.Module], prepared: type[nn.Module]) -> None:
    """Change the class of a plain layer."""
    simple = getattr(part, "padding_mode", "zeros") == "zeros" and not isinstance(getattr(part, "padding", 0), str)
    if type(part) is plain and simple:
        part.__class__ = prepared
