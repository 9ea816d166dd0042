"""Which model rows a step takes: pure bookkeeping, so that a run's cost is known exactly before it runs.

A row is one image, one prompt branch and one evaluation. Rows come as the pipeline lays them out: branch 0 of all B
images, then branch 1; the last branch has the prompt. Images with the same noise and prompt are one until they differ, and until then
their rows are computed once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

Label = Any  # hashable and only compared: a model or a function in a run, numbers that stand for one in a plan


class Mix(NamedTuple):
    """What one image does at one step."""

    share: float  # g, of the tuned model
    tuned: Label = None  # which tuned model
    guided: bool = True  # False: no classifier-free guidance, the prediction without prompt is not needed
    text: Label = None  # which change of the prompt's embedding, None for none


class Row(NamedTuple):
    """Where one row's prediction comes from; rows that are equal are computed once."""

    tuned: Label  # which tuned model; None in a row of the base model
    row: int  # whose input it has


def evaluations(parts: Sequence[Mix], leader: Sequence[int], branches: int) -> tuple[list[Row | None], list[Row | None]]:
    """For each of the branches * B rows what the base and what the tuned model are asked, None where nothing.

    leader: for each image the first one whose trajectory it has shared so far.
    """
    images, last = len(parts), branches - 1
    prompted = first(zip(leader, (part.text for part in parts)))
    base, tuned = [], []
    for branch in range(branches):
        for b, part in enumerate(parts):
            row = branch * images + leader[b] if branch < last and part.guided else last * images + prompted[b]
            base.append(Row(None, row) if part.share != 1 else None)
            tuned.append(Row(part.tuned, row) if part.share != 0 else None)
    return base, tuned


def parted(parts: Sequence[Mix], leader: Sequence[int], branches: int) -> list[int]:
    """The leaders after a step: who was one and did the same stays one."""
    return first(
        (before, part.share, part.tuned if part.share else None, part.guided or branches == 1, part.text)
        for before, part in zip(leader, parts)
    )


def first(labels: Iterable[Hashable]) -> list[int]:
    """For each label the index of its first occurrence."""
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(label, b) for b, label in enumerate(labels)]


def count(asked: Sequence[Row | None]) -> int:
    """How many rows a model computes for what it is asked."""
    return len({row for row in asked if row is not None})
