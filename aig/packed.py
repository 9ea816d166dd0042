"""Convolutions on a CPU that keep their weights in oneDNN's own layout, instead of converting them at every call.

The same numbers, bit for bit, in about 0.95 of the time (two cores, 8 to 16 rows of the embedded world's UNet). torch.compile
packs weights in this way too, but needs a compiler and a minute at the first call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedConv2d(nn.Conv2d):
    """An ``nn.Conv2d`` with a packed copy of its weight for use without gradients; repacked when the weight changes."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        differentiated = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
        if differentiated or weight.is_inference() or input.dtype != torch.float32 or input.is_cuda:
            return super().forward(input)
        geometry = list(self.padding), list(self.stride), list(self.dilation), self.groups
        version = (weight.data_ptr(), weight._version)
        if vars(self).get("_packed_version") != version:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(weight.detach(), *geometry, [])
            self._packed_version = version
        return torch.ops.mkldnn._convolution_pointwise(input, self._packed, self.bias, *geometry, "none", [], "")

    def __getstate__(self) -> dict:
        """Copies pack for themselves."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_packed")}


def packed(module: nn.Module) -> nn.Module:
    """The module, its plain convolutions packed where this build of torch can (CPU, oneDNN); weights and names stay."""
    possible = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    for part in module.modules() if possible else ():
        if type(part) is nn.Conv2d and part.padding_mode == "zeros" and not isinstance(part.padding, str):
            part.__class__ = PackedConv2d
    return module
