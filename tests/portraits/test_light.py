"""Studio light: what it does to a picture, and that it is read from pictures as what it is."""

from __future__ import annotations

import pytest
import torch

from aig.portraits.light import MOST_LIGHT, light_of, lit

SIZE = 64


@pytest.fixture
def portraits():
    """Walls of 12 colours with a darker head in the middle, (12, 3, SIZE, SIZE) in [0, 1]."""
    rng = torch.Generator().manual_seed(0)
    walls = (0.4 + 0.5 * torch.rand(12, 3, 1, 1, generator=rng)).expand(-1, -1, SIZE, SIZE).clone()
    walls[..., 16:, 16:48] = 0.5 * torch.rand(12, 3, 1, 1, generator=rng)
    return walls


def test_light_darkens_corners_glows_at_the_upper_left_and_does_nothing_at_0(portraits):
    assert torch.equal(lit(portraits, torch.zeros(12)), portraits)
    shone_on = lit(portraits, torch.ones(12))
    assert torch.allclose(shone_on[..., 0, -1], 0.2 * portraits[..., 0, -1], atol=1e-3)
    assert (shone_on[..., 16, 15] > portraits[..., 16, 15]).all()


def test_light_is_read_as_it_was_put_on_whatever_the_colours(portraits):
    assert light_of(portraits).abs().max() < 1e-5
    for amount in (0.3, 0.6, 0.9):
        read = light_of(lit(portraits, torch.full((12,), amount)))
        assert read.mean() == pytest.approx(amount, abs=0.15) and read.std() < 0.1
    amounts = torch.linspace(0, MOST_LIGHT, 12)
    assert (light_of(lit(portraits[:1].expand(12, -1, -1, -1), amounts)).diff() > 0).all()


def test_no_light_is_read_from_a_brighter_wall_a_darker_one_or_the_middle(portraits):
    for changed in (portraits * 0.7, portraits * 1.05):
        assert light_of(changed).abs().max() < 1e-5
    in_the_middle = portraits.clone()
    in_the_middle[..., 8:, 8:56] = torch.rand(12, 3, 56, 48, generator=torch.Generator().manual_seed(1))
    assert torch.equal(light_of(in_the_middle), light_of(portraits))


def test_ascent_on_what_is_read_puts_a_smooth_light_on(portraits):
    x = portraits.clone().requires_grad_(True)
    light_of(x).sum().backward()
    top = x.grad[:, :, 0].abs().mean(dim=(0, 1))
    assert (top[:8].diff() < 0).all()  # most at the corner, less and less from there
