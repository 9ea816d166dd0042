"""The models behind published rewards and features: transformers' CLIP, BLIP and DINOv2 with frozen weights from files.

A scorer is built from paths alone (file name -> path, as ``aig.published.scorers.files`` lists them), without any network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from aig.published.pixels import IMAGENET_MEAN, IMAGENET_STD, Fit, Recipe, prepare
from aig.published.weights import assemble, from_blip_vision, from_open_clip, head, read, under

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 16  # images that go through a tower at once
AESTHETICS_HEAD = "sac+logos+ava1-l14-linearMSE.pth"


class Scorer(nn.Module):
    """A reward that takes its images in chunks: beyond the images, memory does not grow with their number."""

    def part(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """The reward (B,) of a chunk on the device of the weights."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Images must be of shape (B, 3, H, W), not {tuple(images.shape)}.")
        if isinstance(prompts, str) or len(prompts) != len(images):
            count = 1 if isinstance(prompts, str) else len(prompts)
            raise ValueError(f"There must be one prompt for each of {len(images)} images, not {count}.")
        images = images.to(next(self.parameters()).device)
        scores = []
        if not len(images):
            return images.new_zeros(0, dtype=torch.float32)
        for k, chunk in enumerate(images.split(CHUNK)):  # split: slices would each make a gradient of all images
            words = tuple(prompts[k * CHUNK : (k + 1) * CHUNK])
            if len(images) > CHUNK and torch.is_grad_enabled() and images.requires_grad:
                scores.append(checkpoint(self.part, chunk, words, use_reentrant=False, preserve_rng_state=False))
            else:
                scores.append(self.part(chunk, words))
        return torch.cat(scores)


class Cosine(Scorer):
    """PickScore, HPSv2.1 and CLIPScore: functions of the cosine of CLIP's image and text embeddings."""

    def __init__(self, name: str, paths: Mapping[str, Path], dtype: torch.dtype) -> None:
        super().__init__()
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

        config = configured(CLIPConfig, paths["config.json"])
        tensors = read(paths["HPS_v2.1_compressed.pt" if name == "hpsv2" else "model.safetensors"])
        tensors = from_open_clip(tensors) if name == "hpsv2" else tensors
        self.clip = assemble(CLIPModel, config, tensors, dtype, name)
        self.name = name
        self.scale = tensors["logit_scale"].double().exp().item()  # a number: bfloat16 would be wrong by 1%
        fits: dict[str, Fit] = {"pickscore": "floor", "hpsv2": "pad", "clip": "round"}  # as each one's own code has it
        self.recipe = _square(config.vision_config.image_size, fits[name])
        tokenizer = tokenizer_of(CLIPTokenizer, paths["vocab.json"])
        self.tokens = tokens(tokenizer, config.text_config.max_position_embeddings)
        self.padding = tokenizer.eos_token_id  # any would do: the tower is causal, and read at the end of the text

    def part(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        clip, words = self.clip, list(dict.fromkeys(prompts))
        pixels = prepare(images, self.recipe).to(clip.dtype)
        seen = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
        ids = padded([self.tokens(prompt) for prompt in words], self.padding, images.device)
        said = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
        said = said[[words.index(prompt) for prompt in prompts]]
        cosine = (F.normalize(seen.float(), dim=1) * F.normalize(said.float(), dim=1)).sum(1)
        if self.name == "clip":
            return 2.5 * cosine.clamp(min=0)
        return self.scale * cosine if self.name == "pickscore" else cosine


class Aesthetics(Scorer):
    """LAION aesthetics v2: an affine map of CLIP's normalised image embedding."""

    def __init__(self, paths: Mapping[str, Path], dtype: torch.dtype) -> None:
        super().__init__()
        self.tower, self.recipe = clip_vision(paths, dtype)
        self.head = head(read(paths[AESTHETICS_HEAD]), "aesthetics").requires_grad_(False)

    def part(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        pixels = prepare(images, self.recipe).to(self.tower.dtype)
        return self.head(F.normalize(self.tower(pixel_values=pixels).image_embeds.float(), dim=1)).squeeze(1)


class ImageReward(Scorer):
    """ImageReward: BLIP's text tower reads the prompt while it looks at the image; an affine map of its class token."""

    MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the scores of the authors' data
    LENGTH = 35  # tokens of a prompt
    UNUSED = ("vision_proj.", "text_proj.")  # of BLIP's contrastive loss

    def __init__(self, paths: Mapping[str, Path], dtype: torch.dtype) -> None:
        super().__init__()
        from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        tensors = read(paths["ImageReward.pt"])
        if stray := set(tensors) - set(under(tensors, "mlp.", "blip.visual_encoder.", "blip.text_encoder.")):
            stray -= set(under(tensors, *(f"blip.{name}" for name in self.UNUSED)))
            if stray:
                raise ValueError(f"The weights of imagereward contain {min(stray)[:100]!r}, which it does not have.")
        eyes = from_blip_vision(under(tensors, "blip.visual_encoder.", cut=True))
        look = vit_config(BlipVisionConfig, eyes)
        text = configured(BlipTextConfig, paths["med_config.json"])
        text.encoder_hidden_size, text.is_decoder = look.hidden_size, True  # "decoder": looks at images
        reader = under(tensors, "blip.text_encoder.", cut=True)
        self.eyes = assemble(BlipVisionModel, look, eyes, dtype, "imagereward")
        self.reader = assemble(BlipTextModel, text, reader, dtype, "imagereward", add_pooling_layer=False)
        self.head = head(under(tensors, "mlp.", cut=True), "imagereward").requires_grad_(False)
        self.recipe = _square(look.image_size, "round")
        tokenizer = tokenizer_of(BertTokenizer, paths["vocab.txt"])
        self.tokens = tokens(tokenizer, min(self.LENGTH, text.max_position_embeddings))

    def part(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        seen = self.eyes(pixel_values=prepare(images, self.recipe).to(self.eyes.dtype)).last_hidden_state
        rows = [self.tokens(prompt) for prompt in prompts]
        ids, mask = padded(rows, 0, images.device), padded([(1,) * len(row) for row in rows], 0, images.device)
        found = self.reader(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        return (self.head(found[:, 0].float()).squeeze(1) - self.MEAN) / self.STD


class Features(nn.Module):
    """Image features of a frozen vision tower: its image embedding if it has one, else its normalised class token."""

    def __init__(self, tower: PreTrainedModel, recipe: Recipe) -> None:
        super().__init__()
        self.tower, self.recipe = tower, recipe

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = []
        for chunk in images.split(CHUNK):
            pixels = prepare(chunk.to(self.tower.device), self.recipe).to(self.tower.dtype)
            out = self.tower(pixel_values=pixels)
            found.append((out.image_embeds if "image_embeds" in out else out.last_hidden_state[:, 0]).float())
        return torch.cat(found)


def clip_vision(paths: Mapping[str, Path], dtype: torch.dtype) -> tuple[PreTrainedModel, Recipe]:
    """The image half of a CLIP model, and how its input is made."""
    from transformers import CLIPConfig, CLIPVisionModelWithProjection

    config = configured(CLIPConfig, paths["config.json"])
    config.vision_config.projection_dim = config.projection_dim
    tensors = under(read(paths["model.safetensors"]), "vision_model.", "visual_projection.")
    tower = assemble(CLIPVisionModelWithProjection, config.vision_config, tensors, dtype, "clip")
    return tower, _square(config.vision_config.image_size, "round")


def clip_features(paths: Mapping[str, Path], dtype: torch.dtype) -> Features:
    """Image embeddings of CLIP."""
    return Features(*clip_vision(paths, dtype))


def dinov2_features(paths: Mapping[str, Path], dtype: torch.dtype) -> Features:
    """Class tokens of DINOv2, which reads the middle 224 of 256 pixels."""
    from transformers import Dinov2Config, Dinov2Model

    config = configured(Dinov2Config, paths["config.json"])
    tower = assemble(Dinov2Model, config, read(paths["model.safetensors"]), dtype, "dinov2")
    return Features(tower, Recipe(size=224, edge=256, fit="floor", mean=IMAGENET_MEAN, std=IMAGENET_STD))


def vit_config(kind: type[PreTrainedConfig], tensors: Mapping[str, torch.Tensor]) -> PreTrainedConfig:
    """The sizes of a BLIP vision transformer, which come with no configuration, from its weights; heads are 64 wide."""
    try:
        patches, positions = tensors["embeddings.patch_embedding.weight"], tensors["embeddings.position_embedding"]
        width, patch = patches.shape[0], patches.shape[-1]
        layers = len(under(tensors, "encoder.layers.")) // len(under(tensors, "encoder.layers.0."))
        inner = tensors["encoder.layers.0.mlp.fc1.weight"].shape[0]
        side = round((positions.shape[1] - 1) ** 0.5)
    except (KeyError, IndexError, ZeroDivisionError):
        raise ValueError("The weights of imagereward have no vision transformer of the expected shape.") from None
    return kind(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        image_size=side * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def configured(kind: type[PreTrainedConfig], path: Path) -> PreTrainedConfig:
    """A transformers configuration from a JSON file; ValueError with one sentence if it is not one."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        return kind.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError):
        raise ValueError(f"{path.name} is not a valid {kind.__name__}.") from None


def tokenizer_of(kind: type[PreTrainedTokenizerBase], path: Path) -> PreTrainedTokenizerBase:
    """A transformers tokenizer from the folder of its vocabulary."""
    return kind.from_pretrained(path.parent, local_files_only=True)


def tokens(tokenizer: PreTrainedTokenizerBase, length: int) -> Callable[[str], tuple[int, ...]]:
    """Prompt -> its tokens, cut to ``length`` with the mark of the end kept; distinct prompts are remembered."""

    @lru_cache(maxsize=4096)
    def of(prompt: str) -> tuple[int, ...]:
        return tuple(tokenizer(prompt, truncation=True, max_length=length).input_ids)

    return of


def padded(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> torch.Tensor:
    """Rows of integers as one tensor (B, longest)."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value).to(device)


def _square(size: int, fit: Fit) -> Recipe:
    return Recipe(size=size, edge=size, fit=fit)
