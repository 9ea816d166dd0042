"""Tiny random checkpoints in the formats of the published rewards, and naive forwards in their authors' layouts.

``build(name, folder)`` writes every file that ``aig.published.scorers.files(name)`` lists; ``OpenClip`` and ``Blip`` are modules
whose ``state_dict`` has the authors' names, made of torch's own layers.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from tests.tiny import IDS, LETTERS, VOCABULARY, WORDS

SIDE, PATCH, LENGTH = 28, 7, 12  # of the towers' input, of a patch, of a prompt in tokens
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def build(name: str, folder: Path) -> Path:
    """The files of a reward or feature model, side by side in a folder; seeded."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    if name == "dinov2":
        model = Dinov2Model(Dinov2Config(**VISION, patch_size=56, image_size=224, layerscale_value=0.5))
        (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
        save_file(stirred(model).state_dict(), folder / "model.safetensors")
    elif name == "imagereward":
        torch.save({**stirred(Blip()).state_dict(), **BLIP_EXTRAS}, folder / "ImageReward.pt")
        (folder / "med_config.json").write_text(json.dumps(MED))
        (folder / "vocab.txt").write_text("\n".join(BERT_WORDS))
    else:
        clip_tokenizer(folder)
        config = CLIPConfig(
            text_config={**TEXT, **IDS, "max_position_embeddings": LENGTH, "hidden_act": "gelu"},
            vision_config={**VISION, "image_size": SIDE, "patch_size": PATCH, "hidden_act": "gelu"},
            projection_dim=16,
        )
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        if name == "hpsv2":
            weights = stirred(OpenClip(len(WORDS))).state_dict()
            halves = {key: value.half() for key, value in weights.items()}
            torch.save({"state_dict": halves}, folder / "HPS_v2.1_compressed.pt")
        else:
            weights = stirred(CLIPModel(config)).state_dict()
            positions = {"text_model.embeddings.position_ids": torch.arange(LENGTH)}  # old checkpoints have them
            save_file({**weights, **positions}, folder / "model.safetensors")
        if name == "aesthetics":
            torch.save(stirred(Mlp(16)).state_dict(), folder / "sac+logos+ava1-l14-linearMSE.pth")
            for unread in ("vocab.json", "merges.txt"):
                (folder / unread).unlink()
    return folder


def stirred(model: nn.Module) -> nn.Module:
    """Large enough random weights everywhere: stock ones leave biases at 0 and hide what is swapped."""
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.2 if parameter.ndim < 2 else 1.5 * parameter[0].numel() ** -0.5
            parameter.add_(spread * torch.randn_like(parameter))
    return model.eval()


def clip_tokenizer(folder: Path) -> None:
    """The files of a byte-pair vocabulary of letters."""
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("#version: 0.2\n")


class Block(nn.Module):
    """A pre-norm block in the names of open_clip."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, inner), "c_proj": nn.Linear(inner, width)})

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]  # x: (length, batch, width)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class OpenClip(nn.Module):
    """CLIP (arXiv 2103.00020) with the parameter names and layouts of open_clip."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()

        def blocks(shape: dict[str, int]) -> nn.ModuleDict:
            width, inner, depth, heads = shape.values()
            return nn.ModuleDict({"resblocks": nn.ModuleList([Block(width, inner, heads) for _ in range(depth)])})

        seen, said = VISION["hidden_size"], TEXT["hidden_size"]
        self.visual = nn.Module()
        self.visual.conv1 = nn.Conv2d(3, seen, PATCH, PATCH, bias=False)
        self.visual.class_embedding = nn.Parameter(torch.zeros(seen))
        self.visual.positional_embedding = nn.Parameter(torch.zeros((SIDE // PATCH) ** 2 + 1, seen))
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(seen), nn.LayerNorm(seen)
        self.visual.transformer = blocks(VISION)
        self.visual.proj = nn.Parameter(torch.zeros(seen, 16))
        self.token_embedding = nn.Embedding(vocabulary, said)
        self.positional_embedding = nn.Parameter(torch.zeros(LENGTH, said))
        self.transformer = blocks(TEXT)
        self.ln_final = nn.LayerNorm(said)
        self.text_projection = nn.Parameter(torch.zeros(said, 16))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The cosine (B,) of pixels (B, 3, SIDE, SIDE) and ids (B, LENGTH) padded with 0."""
        see = self.visual
        x = see.conv1(pixels).flatten(2).permute(2, 0, 1)
        x = torch.cat([see.class_embedding.expand(1, len(pixels), -1), x]) + see.positional_embedding.unsqueeze(1)
        x = see.ln_pre(x)
        for block in see.transformer["resblocks"]:
            x = block(x)
        image = see.ln_post(x[0]) @ see.proj
        y = (self.token_embedding(ids) + self.positional_embedding).transpose(0, 1)
        mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)
        for block in self.transformer["resblocks"]:
            y = block(y, mask)
        text = self.ln_final(y).transpose(0, 1)[torch.arange(len(ids)), ids.argmax(1)] @ self.text_projection
        return F.cosine_similarity(image, text)


class Mlp(nn.Module):
    """The head of LAION aesthetics and of ImageReward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (nn.Linear(width, 20), nn.Dropout(0.2), nn.Linear(20, 12), nn.Dropout(0.2), nn.Linear(12, 8))
        self.layers = nn.Sequential(*sizes, nn.Dropout(0.1), nn.Linear(8, 6), nn.Linear(6, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + letter for letter in LETTERS)]
MED = {  # BERT's configuration as ImageReward has it, smaller
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 24, "initializer_range": 0.02, "intermediate_size": 48,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 40, "model_type": "bert", "num_attention_heads": 2,
    "num_hidden_layers": 2, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": len(BERT_WORDS) + 2,
    "encoder_width": 24, "add_cross_attention": True,
}  # fmt: skip
BLIP_EXTRAS = {"blip.text_encoder.embeddings.position_ids": torch.arange(40).unsqueeze(0)}
BLIP_WIDTH = 128  # two heads of 64


class Blip(nn.Module):
    """BLIP (arXiv 2201.12086) with a reward head, in the parameter names of ImageReward."""

    def __init__(self) -> None:
        super().__init__()
        width, hidden, inner = BLIP_WIDTH, MED["hidden_size"], MED["intermediate_size"]

        def named(**parts: nn.Module) -> nn.ModuleDict:
            return nn.ModuleDict(parts)

        def attention(source: int) -> nn.ModuleDict:
            project = nn.ModuleDict({"query": nn.Linear(hidden, hidden), "key": nn.Linear(source, hidden)})
            project["value"] = nn.Linear(source, hidden)
            return nn.ModuleDict({"self": project, "output": after(hidden)})

        def after(size: int) -> nn.ModuleDict:
            return nn.ModuleDict({"dense": nn.Linear(size, hidden), "LayerNorm": nn.LayerNorm(hidden, eps=1e-12)})

        eyes, reader = nn.Module(), nn.Module()
        eyes.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        eyes.pos_embed = nn.Parameter(torch.zeros(1, (SIDE // PATCH) ** 2 + 1, width))
        eyes.patch_embed = named(proj=nn.Conv2d(3, width, PATCH, PATCH))
        eyes.norm = nn.LayerNorm(width, eps=1e-6)
        eyes.blocks = nn.ModuleList(
            named(
                norm1=nn.LayerNorm(width, eps=1e-6),
                attn=named(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width)),
                norm2=nn.LayerNorm(width, eps=1e-6),
                mlp=named(fc1=nn.Linear(width, 2 * width), fc2=nn.Linear(2 * width, width)),
            )
            for _ in range(2)
        )
        reader.embeddings = named(
            word_embeddings=nn.Embedding(MED["vocab_size"], hidden),
            position_embeddings=nn.Embedding(MED["max_position_embeddings"], hidden),
            LayerNorm=nn.LayerNorm(hidden, eps=1e-12),
        )
        reader.encoder = nn.ModuleDict({"layer": nn.ModuleList(
            named(
                attention=attention(hidden),
                crossattention=attention(width),
                intermediate=named(dense=nn.Linear(hidden, inner)),
                output=after(inner),
            )
            for _ in range(2)
        )})  # fmt: skip
        self.blip = nn.ModuleDict({"visual_encoder": eyes, "text_encoder": reader})
        self.blip["vision_proj"], self.blip["text_proj"] = nn.Linear(width, 16), nn.Linear(hidden, 16)
        self.mlp = Mlp(hidden)

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The raw reward (B,) of pixels (B, 3, SIDE, SIDE) and ids (B, L); mask (B, L) is 1 at words."""
        eyes, reader = self.blip["visual_encoder"], self.blip["text_encoder"]
        x = eyes.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([eyes.cls_token.expand(len(x), 1, -1), x], 1) + eyes.pos_embed
        for block in eyes.blocks:
            q, k, v = block["attn"]["qkv"](block["norm1"](x)).chunk(3, -1)
            x = x + block["attn"]["proj"](attend(q, k, v, 2))
            x = x + block["mlp"]["fc2"](F.gelu(block["mlp"]["fc1"](block["norm2"](x))))
        x = eyes.norm(x)
        table = reader.embeddings
        h = table["LayerNorm"](table["word_embeddings"](ids) + table["position_embeddings"].weight[: ids.shape[1]])
        for layer in reader.encoder["layer"]:
            for name, source, allowed in (("attention", None, mask), ("crossattention", x, None)):
                project, out = layer[name]["self"], layer[name]["output"]
                source = h if source is None else source
                found = attend(project["query"](h), project["key"](source), project["value"](source), 2, allowed)
                h = out["LayerNorm"](h + out["dense"](found))
            inner = F.gelu(layer["intermediate"]["dense"](h))
            h = layer["output"]["LayerNorm"](h + layer["output"]["dense"](inner))
        return self.mlp(h[:, 0]).squeeze(1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, allowed: torch.Tensor | None = None) -> torch.Tensor:
    """Attention of (B, L, D), head by head, with the keys where ``allowed`` (B, L) is 1."""
    outputs = []
    for q1, k1, v1 in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        logits = q1 @ k1.transpose(1, 2) / q1.shape[-1] ** 0.5
        if allowed is not None:
            logits = logits.masked_fill(allowed.unsqueeze(1) == 0, -torch.inf)
        outputs.append(logits.softmax(-1) @ v1)
    return torch.cat(outputs, -1)
