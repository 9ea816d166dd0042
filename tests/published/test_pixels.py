"""Preparation of pixels against PIL and against the processors of transformers, which the originals use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from aig.published.pixels import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Recipe, prepare

SIZES = [(301, 452), (517, 233), (97, 130), (224, 224), (224, 301), (640, 640), (225, 1000)]  # height, width
LEVEL = 1 / 255 / min(CLIP_STD)  # one of 256 levels, normalised


def picture(height: int, width: int, kind: str) -> np.ndarray:
    """Noise, or smooth colours with hard edges as pictures have, (H, W, 3) uint8."""
    rng = np.random.default_rng(height * width)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = np.stack([np.sin(9 * x + 3 * y + 5 * x * y), np.cos(11 * y - 4 * x), np.sin(23 * x * y)], -1) / 2 + 0.5
    waves[(x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.04] = (1, 0, 0.2)
    return (255 * (0.9 * waves + 0.1 * rng.random(waves.shape))).astype(np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.tensor(image).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("kind", ["noise", "natural"])
@pytest.mark.parametrize("size", SIZES)
def test_as_the_processor_of_clip_to_little_more_than_a_level(size, kind):
    image = picture(*size, kind)
    expected = CLIPImageProcessorPil()(Image.fromarray(image), return_tensors="pt").pixel_values
    difference = (prepare(tensor(image), Recipe(size=224, edge=224, fit="floor")) - expected).abs()
    # PIL rounds after both passes: half a level each, the first one times the absolute sum of the kernel
    assert difference.max() < 1.2 * LEVEL and difference.mean() < 0.35 * LEVEL


@pytest.mark.parametrize("size", SIZES[:3])
def test_as_the_processor_of_dinov2(size):
    image = picture(*size, "natural")
    processor = BitImageProcessorPil(size={"shortest_edge": 256}, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
    expected = processor(Image.fromarray(image), return_tensors="pt").pixel_values
    recipe = Recipe(size=224, edge=256, fit="floor", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert expected.shape == (1, 3, 224, 224)
    assert (prepare(tensor(image), recipe) - expected).abs().max() < 1.2 / 255 / min(IMAGENET_STD)


@pytest.mark.parametrize("size", SIZES)
def test_as_torchvision_crops(size):
    """ImageReward, CLIPScore and LAION aesthetics: torchvision's Resize and CenterCrop, spelled out."""
    image = picture(*size, "natural")
    height, width = size
    shape = (224, int(224 * height / width)) if width < height else (int(224 * width / height), 224)
    scaled = np.asarray(Image.fromarray(image).resize(shape, Image.BICUBIC))
    top, left = round((shape[1] - 224) / 2.0), round((shape[0] - 224) / 2.0)
    expected = tensor(scaled[top : top + 224, left : left + 224])
    expected = (expected - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    found = prepare(tensor(image), Recipe(size=224, edge=224, fit="round"))
    assert (found - expected).abs().max() < 1.2 * LEVEL


@pytest.mark.parametrize("size", SIZES)
def test_as_hpsv2_letterboxes_floats(size):
    """HPSv2 resizes tensors, unrounded and unclamped: PIL's float images do the same."""
    image = picture(*size, "noise")
    height, width = (round(side * 224 / max(size)) for side in size)
    channels = [Image.fromarray((image[..., c] / 255).astype(np.float32)) for c in range(3)]
    scaled = np.stack([np.asarray(channel.resize((width, height), Image.BICUBIC)) for channel in channels])
    expected = torch.zeros(1, 3, 224, 224)
    top, left = (224 - height) // 2, (224 - width) // 2
    expected[0, :, top : top + height, left : left + width] = torch.from_numpy(scaled)
    expected = (expected - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    assert torch.allclose(prepare(tensor(image), Recipe(size=224, edge=224, fit="pad")), expected, atol=1e-4)


@pytest.mark.parametrize("fit", ["floor", "round", "pad"])
def test_slope_is_that_of_finite_differences(fit):
    recipe = Recipe(size=14, edge=14, fit=fit)
    rng = torch.Generator().manual_seed(0)
    image = 0.4 + 0.2 * torch.rand(1, 3, 21, 37, generator=rng)
    along, weights = torch.rand(1, 3, 21, 37, generator=rng) - 0.5, torch.rand(1, 3, 14, 14, generator=rng)
    image.requires_grad_(True)
    (prepare(image, recipe) * weights).sum().backward()
    step = 0.05
    ends = [(prepare(image.detach() + sign * step * along, recipe) * weights).sum() for sign in (1, -1)]
    measured = float(ends[0] - ends[1]) / (2 * step)
    assert float((image.grad * along).sum()) == pytest.approx(measured, rel=1e-3, abs=1e-2)
    assert (image.grad != 0).float().mean() > 0.5
