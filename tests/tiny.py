"""What the tiny models of several tests have in common: CLIP's tokenizer for words of single letters, and a UNet."""

from __future__ import annotations

from string import ascii_lowercase as LETTERS

from diffusers import UNet2DConditionModel
from transformers import CLIPTokenizer

WORDS = (*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>")
VOCABULARY = {word: i for i, word in enumerate(WORDS)}
IDS = {"vocab_size": len(WORDS), "bos_token_id": len(WORDS) - 2, "eos_token_id": len(WORDS) - 1, "pad_token_id": len(WORDS) - 1}


def clip_tokenizer(length: int) -> CLIPTokenizer:
    """A tokenizer that cuts prompts to so many tokens."""
    return CLIPTokenizer(vocab=VOCABULARY, merges=[], model_max_length=length)


def unet(**options: object) -> UNet2DConditionModel:
    """Of 8 x 8 latents, with one block of convolutions and one of attention."""
    blocks = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(**blocks | options)
