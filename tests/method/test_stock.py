"""What the table of pipelines says: on every one of them, the method is the naive mix of two models, image by image.

The table is ``python -m tests.method.test_stock``.
"""

from __future__ import annotations

import copy
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aig.method import adapters
from aig.method.guidance import annealed
from tests import families
from tests.stock import STOCK, Stock

SHARES = ((0.0, 1.0), (0.5, 0.3), (1.0, 0.6), (0.0, 0.5), (1.0, 0.2), (0.7, 1.0))  # (T, B)


@cache
def built(name: str) -> tuple[Stock, nn.Module]:
    """A pipeline with weights that matter, and a second denoiser."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        stock = STOCK[name]()
        denoiser = adapters.denoiser(stock.pipe).eval()
        families._stir(denoiser, 0.2)
        twin = copy.deepcopy(denoiser)
        torch.manual_seed(1)
        families._stir(twin, 0.3)
    stock.pipe.set_progress_bar_config(disable=True)
    return stock, twin


def run(stock: Stock, *seeds: int, **changes: object) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_inference_steps": stock.steps, "output_type": stock.output, "return_dict": False}
    return torch.as_tensor(stock.pipe(**stock.call(len(seeds)) | options | changes, generator=generators)[0])


def naive(stock: Stock, twin: nn.Module, shares, seed: int, **changes: object) -> Tensor:
    """Both models at every call, each with inputs of its own and the attention that the pipeline has set."""
    denoiser, calls = adapters.denoiser(stock.pipe), stock.calls if isinstance(stock.calls, tuple) else (stock.calls,) * stock.steps
    stock_forward = denoiser.forward
    turn = iter([g for g, times in list(zip(shares, calls))[stock.begins :] for _ in range(times)])

    def forward(*args, **kwargs):
        g = next(turn)
        if hasattr(denoiser, "set_attn_processor"):
            twin.set_attn_processor(dict(denoiser.attn_processors))
        a, b = (model(*copy.deepcopy(args), **copy.deepcopy(kwargs)) for model in (stock_forward, twin))
        if isinstance(a[0], list):
            return ([(1 - g) * x + g * y for x, y in zip(a[0], b[0])],)
        mixed = (1 - g) * a[0] + g * b[0]
        return (mixed,) if isinstance(a, tuple) else type(a)(mixed)

    denoiser.forward = forward
    try:
        return run(stock, seed, **changes)[0]
    finally:
        del denoiser.forward
        assert next(turn, None) is None


@cache
def proven(name: str) -> tuple[str, str, str]:
    """What the table says of a pipeline; fails unless it is exact."""
    stock, twin = built(name)
    shares, rows = SHARES[: stock.steps], []
    handle = adapters.denoiser(stock.pipe).register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(args[0] if args else next(iter(kwargs.values())))), with_kwargs=True
    )
    with annealed(stock.pipe, shares, twin) as ledger:
        together = run(stock, 1, 2)
    handle.remove()
    for b, seed in enumerate((1, 2)):
        expected = naive(stock, twin, [row[b] for row in shares], seed)
        torch.testing.assert_close(together[b], expected, atol=1e-3, rtol=1e-3)
    with annealed(stock.pipe, [0.0] * stock.steps, twin):
        base = run(stock, 1, 2)
    assert torch.equal(base, run(stock, 1, 2))
    assert (together - base).flatten(1).abs().amax(1).min() > 1e-3
    calls = stock.calls if isinstance(stock.calls, int) else max(stock.calls)
    a_call = [n // 2 for n in rows[-calls:]]
    return type(stock.pipe).__name__, " + ".join(map(str, a_call)), "yes" if ledger.total < 2 * sum(rows) else "no"


@pytest.mark.parametrize("name", STOCK)
def test_every_image_of_a_batch_is_the_naive_mix(name: str) -> None:
    proven(name)


def table() -> str:
    """Pipelines that are alike share a row."""
    alike: dict[tuple[str, str], list[str]] = {}
    for pipeline, *kind in sorted(proven(name) for name in STOCK):
        alike.setdefault(tuple(kind), []).append(pipeline.removesuffix("Pipeline"))
    head = ("predictions of an image, call by call", "only what is needed", "pipelines (`...Pipeline`)")
    rows = [(*kind, ", ".join(pipelines)) for kind, pipelines in sorted(alike.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * 3, *rows))


def test_the_table_in_the_readme_is_this() -> None:
    assert table() in Path("aig/method/README.md").read_text()


if __name__ == "__main__":
    print(table())
