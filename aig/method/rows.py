"""The rows of a denoiser's call: inputs for some of them, answers put together, whatever a model takes and returns.

Rows are left out only where it is sure that a model's answer to a row depends on that row alone, by the names of the inputs
and by the attention processors; elsewhere the model computes all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree

# Inputs with an entry a row, or as many a row (AnimateDiff: one a frame), as diffusers names them.
OF_ROWS = {
    "hidden_states", "sample", "timestep", "timesteps", "t", "encoder_hidden_states", "encoder_attention_mask", "encoder_mask",
    "encoder_hidden_states_image", "encoder_hidden_states_t5", "encoder_hidden_states_2", "encoder_attention_mask_2",
    "encoder_hidden_states_mask", "attention_mask", "text_embedding_mask", "text_embedding_mask_t5", "pooled_projections",
    "guidance", "class_labels", "timestep_cond", "added_cond_kwargs", "added_time_ids", "original_size", "target_size",
    "crop_coords", "image_meta_size", "style", "image_latents", "image_embeddings", "fps", "down_block_additional_residuals",
    "mid_block_additional_residual", "down_intrablock_additional_residuals", "controlnet_block_samples",
    "controlnet_single_block_samples", "block_controlnet_hidden_states",
}  # fmt: skip
LISTS = {"img_shapes", "txt_seq_lens"}  # lists with an item a row (Qwen-Image)
# Positions, whatever their length.
SHARED = {"img_ids", "txt_ids", "image_rotary_emb", "rotary_embedding", "padding_mask", "rope_interpolation_scale"}
TIMESTEPS = ("timestep", "timesteps", "t", "timestep_ratio")
PLAIN = (Tensor, int, float, bool, str, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class Call:
    """A call of a denoiser: its named inputs, and how many rows they are."""

    inputs: Mapping[str, Any]
    rows: int

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> Call:
        """ValueError for inputs that are not values: two models would share, and change, one thing."""
        for name, value in inputs.items():
            strange = [leaf for leaf in tree.tree_leaves(value) if not isinstance(leaf, PLAIN)]
            if strange or "cache" in name and isinstance(value, (Tensor, dict, list, tuple)):
                raise ValueError(
                    f"the pipeline gives its denoiser {name} of type {type((strange or [value])[0]).__name__}, which cannot be given to "
                    "two models: turn off what uses it, or use another pipeline"
                )
        return cls(inputs, len(next(iter(inputs.values()))))

    @property
    def timestep(self) -> Tensor | float | None:
        """As the pipeline names and scales it; None if it is called otherwise."""
        return next((self.inputs[name] for name in TIMESTEPS if name in self.inputs), None)

    @property
    def separable(self) -> bool:
        """Whether every input is known to have an entry a row (or k a row, or one for all), or to be shared by all."""
        known = tree.tree_leaves([value for name, value in self.inputs.items() if name in OF_ROWS])
        fits = all(len(leaf) % self.rows == 0 or len(leaf) == 1 for leaf in known if isinstance(leaf, Tensor) and leaf.ndim)
        lists = all(len(value) == self.rows for name, value in self.inputs.items() if name in LISTS and value is not None)
        others = [value for name, value in self.inputs.items() if name not in OF_ROWS | SHARED | LISTS]
        single = not any(isinstance(leaf, Tensor) and leaf.ndim for leaf in tree.tree_leaves(others))
        several = any(isinstance(value, (list, tuple)) and len(value) > 1 for value in others)
        return isinstance(next(iter(self.inputs.values())), Tensor) and fits and lists and single and not several

    def some(self, rows: Sequence[int] | None) -> dict[str, object]:
        """Fresh inputs of these rows, None for all: models pop from lists that they are given, and write into tensors."""

        def fresh(name: str, leaf: object) -> object:
            if not isinstance(leaf, Tensor):
                return leaf
            if rows is None or len(rows) == self.rows or name not in OF_ROWS or not leaf.ndim or len(leaf) % self.rows:
                return leaf.clone()
            return taken(leaf, rows, self.rows)

        chosen = {name: [value[i] for i in rows] for name, value in self.inputs.items() if rows is not None and name in LISTS and value}
        inputs = {**self.inputs, **chosen}
        return {name: tree.tree_map(lambda leaf, name=name: fresh(name, leaf), value) for name, value in inputs.items()}


def taken(values: Tensor, rows: Sequence[int], of: int) -> Tensor:
    """Rows of a tensor with a multiple k of ``of`` entries, k a row."""
    return values if list(rows) == list(range(of)) else values.unflatten(0, (of, -1))[list(rows)].flatten(0, 1)


@dataclass(frozen=True)
class Answer:
    """What a denoiser returned: its tensors with a row each (or k a row), and how to return such ones."""

    tensors: list[Tensor]
    rows: int
    like: Callable[[list[Tensor]], object]

    @classmethod
    def of(cls, output: object, rows: int) -> Answer:
        """Of a tuple or a model's output; a list of one tensor a row becomes one tensor. ValueError for anything else."""
        leaves, form = tree.tree_flatten(output, is_leaf=lambda node: isinstance(node, list))
        lists = [isinstance(leaf, list) for leaf in leaves]
        leaves = [torch.stack(leaf) if is_list else leaf for leaf, is_list in zip(leaves, lists)]
        mixed = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        strange = any(not isinstance(leaf, PLAIN) for leaf in leaves) or any(not leaves[i].ndim or len(leaves[i]) % rows for i in mixed)
        if strange or not mixed:
            raise ValueError(f"the denoiser returns {type(output).__name__} that are not {rows} rows of numbers: it is not supported")

        def like(tensors: list[Tensor]) -> object:
            new = dict(zip(mixed, tensors))
            values = [list(new[i]) if lists[i] else new.get(i, leaf) for i, leaf in enumerate(leaves)]
            return tree.tree_unflatten(values, form)

        return cls([leaves[i] for i in mixed], rows, like)

    def arranged(self, rows: Sequence[int]) -> Answer:
        """These of its rows."""
        return Answer([taken(values, rows, self.rows) for values in self.tensors], len(rows), self.like)


def joined(answers: Sequence[Answer]) -> Answer:
    """Answers one after the other."""
    if len(answers) == 1:
        return answers[0]
    together = [torch.cat(parts) for parts in zip(*(answer.tensors for answer in answers))]
    return Answer(together, sum(answer.rows for answer in answers), answers[0].like)


def rowwise(values: Tensor, like: Tensor) -> Tensor:
    """Values (rows,) that broadcast over ``like`` (rows * k, ...), on its device."""
    return values.to(like.device).repeat_interleave(len(like) // len(values)).view(-1, *[1] * (like.ndim - 1))


def chunks(rows: list[int], most: int | None) -> list[list[int]]:
    """The rows in pieces of nearly equal length, none longer than ``most``."""
    pieces = 1 if most is None else -(-len(rows) // most)
    size = -(-len(rows) // pieces)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
