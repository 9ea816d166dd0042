"""Packed convolutions against plain ones: equal numbers, live weights, copies and gradients of their own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from aig.machine.packed import PackedConv2d, multiply_in, packed

# torch computes a single image without oneDNN, and oneDNN chooses another kernel for some packed layouts
ROUNDING = {"atol": 1e-6, "rtol": 1e-6}


@pytest.fixture
def pair():
    """A small convolutional net and its packed copy."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 4, 1))
    plain.requires_grad_(False).to(memory_format=torch.channels_last)
    return plain, packed(copy.deepcopy(plain))


@torch.no_grad()
def test_the_same_numbers_for_every_batch_and_size(pair):
    plain, ours = pair
    assert sum(isinstance(part, PackedConv2d) for part in ours) == 3
    for shape in ((1, 3, 8, 8), (5, 3, 16, 12), (16, 3, 8, 8)):
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        for _ in range(2):  # packed for this shape, then found packed
            torch.testing.assert_close(ours(x), plain(x), **ROUNDING)


@torch.no_grad()
def test_changed_weights_and_copies_are_packed_anew(pair):
    plain, ours = pair
    x = torch.randn(2, 3, 8, 8)
    before, twin = ours(x), copy.deepcopy(ours)
    twin[0].weight.mul_(2)
    plain[0].weight.mul_(2)
    torch.testing.assert_close(twin(x), plain(x), **ROUNDING)
    assert torch.equal(ours(x), before)
    assert not torch.equal(twin(x), before)
    assert list(twin.state_dict()) == list(plain.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replaced_weights_and_changed_biases_are_seen(dtype):
    """Twice each: the second one may come to lie where the first one lay."""
    torch.manual_seed(0)
    ours, x = multiply_in(packed(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4))), dtype), torch.randn(2, 3, 8, 8)
    for layer in (ours[0], ours[2]):
        for name in ("weight", "bias", "weight", "bias"):
            ours(x)
            setattr(layer, name, nn.Parameter(getattr(layer, name) + 3))
            expected = nn.functional.linear(nn.functional.conv2d(x, ours[0].weight, ours[0].bias).flatten(1), ours[2].weight, ours[2].bias)
            assert (ours(x) - expected).abs().max() < 0.02 * expected.abs().max()
            getattr(layer, name).add_(3)
            expected = nn.functional.linear(nn.functional.conv2d(x, ours[0].weight, ours[0].bias).flatten(1), ours[2].weight, ours[2].bias)
            assert (ours(x) - expected).abs().max() < 0.02 * expected.abs().max()


def test_gradients_go_the_plain_way(pair):
    plain, ours = pair
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    (theirs,) = torch.autograd.grad(plain(x).square().sum(), x)
    (own,) = torch.autograd.grad(ours(x).square().sum(), x)
    assert torch.equal(theirs, own)
