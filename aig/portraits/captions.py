"""English captions of a drawing, the words the text encoder knows, and what a prompt leaves open.

A caption mentions every attribute with its own probability, in one of several sentence shapes, so under-specified prompts are
what the model is trained on. The tokenizer is word-level; a word it does not know becomes ``<unk>``, which training teaches
the model to ignore.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from aig.portraits.population import ATTRIBUTES, BACKGROUNDS, HAIR, MOODS, NONE, OUTFIT, SKIN

MAX_TOKENS = 40
P_MENTION = 0.45  # of each attribute, beside captions that mention nothing
P_EMPTY = 0.35  # of captions that need not name anything; trains the unconditional branch of classifier-free guidance
P_UNKNOWN = 0.02  # of each word, replaced by one that the tokenizer does not know
UNKNOWN = "xyzzy"
ARTICLES = ("a", "an", "the")

MOOD_WORDS = {
    "smiling": ("smiling", "happy", "cheerful"),
    "neutral": ("neutral", "calm", "serious"),
    "sad": ("sad", "unhappy"),
    "surprised": ("surprised", "astonished"),
}
COLOUR_WORDS = {
    "gray": ("gray", "grey"), "purple": ("purple", "violet"), "blond": ("blond", "blonde"), "red": ("red", "ginger"),
    "silver": ("silver", "white"), "teal": ("teal", "turquoise"), "magenta": ("magenta", "pink"),
    "dark": ("dark", "black"), "light": ("light", "pale"), "medium": ("medium", "tan"),
}  # fmt: skip
HEADS = ("portrait", "picture", "drawing", "avatar")


def _choose(rng: torch.Generator, options):
    return options[int(torch.randint(len(options), (1,), generator=rng))]


def _happens(rng: torch.Generator, p: float) -> bool:
    return float(torch.rand((), generator=rng)) < p


def caption(attributes: Mapping[str, str], rng: torch.Generator, mention: float = P_MENTION, always: str = "") -> str:
    """A sentence about some of the attributes, and about ``always``; ``mention`` = 1 names all that can be named."""
    named = {name: v for name, v in attributes.items() if (_happens(rng, mention) or name == always) and v != NONE}
    return sentence(named, rng, robot=attributes["style"] == "bottts")


def sentence(named: Mapping[str, str], rng: torch.Generator, *, robot: bool = False) -> str:
    """A sentence that names exactly these attribute values."""

    def colour(word: str, plain: bool = False) -> str:
        return word if plain else _choose(rng, COLOUR_WORDS.get(word, (word,)))

    mood = _choose(rng, MOOD_WORDS[named["mood"]]) if "mood" in named else ""
    kind = "robot" if robot and _happens(rng, 0.8) else "person"
    features = []
    hair = []
    if named.get("hair length") in ("short", "long"):
        hair.append(named["hair length"])
    if "hair colour" in named:
        hair.append(colour(named["hair colour"]))
    if hair:
        features.append(" ".join([*hair, "hair"]))
    if named.get("hair length") == "bald":
        mood = f"{mood} bald".strip()
    if "skin" in named:
        features.append(f"{colour(named['skin'])} skin")
    if "glasses" in named:
        features.append(_choose(rng, ("glasses", "spectacles")) if named["glasses"] == "yes" else "no glasses")
    if "beard" in named:
        features.append("a beard" if named["beard"] == "yes" else "no beard")
    if "hat" in named:
        features.append(_choose(rng, ("a hat", "a cap")) if named["hat"] == "yes" else "no hat")
    if "outfit" in named and kind == "person":
        features.append(f"{colour(named['outfit'], plain=True)} {_choose(rng, ('clothes', 'outfit', 'shirt'))}")
    elif "outfit" in named:
        kind = f"{named['outfit']} robot"
    order = torch.randperm(len(features), generator=rng).tolist()
    subject = f"a {mood} {kind}".replace("  ", " ")
    if features:
        subject += " with " + " and ".join(features[i] for i in order)
    text = subject
    if "style" in named:
        style = named["style"]
        text = _choose(rng, (f"{subject} in {style} style", f"a {style} {_choose(rng, HEADS)} of {subject}", f"{style} {subject}"))
    elif _happens(rng, 0.3):
        text = f"a {_choose(rng, HEADS)} of {subject}"
    if "background" in named:
        text += f" on a {colour(named['background'])} background"
    return text


def training_caption(attributes: Mapping[str, str], rng: torch.Generator, always: str = "") -> str:
    """A caption as the denoiser sees it in training: sometimes words it does not know; empty at times, unless ``always``."""
    if not always and _happens(rng, P_EMPTY):
        return ""
    words = caption(attributes, rng, always=always).split()
    return " ".join(UNKNOWN if _happens(rng, P_UNKNOWN) else word for word in words)


def words_of(text: str) -> list[str]:
    """The words of a prompt as the tokenizer sees them."""
    return re.findall(r"[a-z]+", text.lower())


def known_words() -> list[str]:
    """Every word that captions can contain, sorted."""
    text = "a of in on with and style background hair skin no glasses spectacles beard hat cap clothes outfit shirt bald"
    text += " person robot " + " ".join(HEADS)
    text += " ".join(" ".join(v) for v in (["", *ATTRIBUTES["style"]], ["", *BACKGROUNDS], ["", *HAIR], ["", *SKIN], ["", *OUTFIT]))
    text += " short long " + " ".join(" ".join(words) for words in (*MOOD_WORDS.values(), *COLOUR_WORDS.values()))
    return sorted(set(words_of(text)))


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, lower-case, blind to punctuation and digits."""
    special = ["<pad>", "<unk>", "<start>", "<end>"]
    vocabulary = {word: i for i, word in enumerate([*special, *known_words()])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")])
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(t, vocabulary[t]) for t in ("<start>", "<end>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>",
        model_max_length=MAX_TOKENS, padding_side="right",
    )  # fmt: skip


def _phrases() -> dict[str, dict[str, tuple[str, ...]]]:
    """Attribute -> value -> the phrases that name it; used to tell what a prompt fixes."""
    words = lambda value: COLOUR_WORDS.get(value, (value,))  # noqa: E731
    return {
        "style": {s: (s,) for s in ATTRIBUTES["style"]} | {"bottts": ("bottts", "robot")},
        "background": {v: tuple(f"{w} background" for w in words(v)) for v in BACKGROUNDS},
        "hair colour": {v: tuple(f"{w} hair" for w in words(v)) for v in HAIR},
        "hair length": {"bald": ("bald",), "short": ("short hair",), "long": ("long hair",)}
        | {n: tuple(f"{n} {w} hair" for v in HAIR for w in words(v)) + (f"{n} hair",) for n in ("short", "long")},
        "skin": {v: tuple(f"{w} skin" for w in words(v)) for v in SKIN},
        "glasses": {"no": ("no glasses", "no spectacles"), "yes": ("glasses", "spectacles")},
        "beard": {"no": ("no beard",), "yes": ("beard",)},
        "hat": {"no": ("no hat", "no cap"), "yes": ("hat", "cap")},
        "mood": {v: MOOD_WORDS[v] for v in MOODS},
        "outfit": {v: tuple(f"{v} {w}" for w in ("clothes", "outfit", "shirt", "robot")) for v in OUTFIT},
    }


def named_attributes(prompt: str) -> dict[str, str]:
    """The attribute values that a prompt names, by the phrases that captions use."""
    text = f" {' '.join(words_of(prompt))} "
    named = {}
    for attribute, values in _phrases().items():
        for value, phrases in values.items():
            if attribute not in named and any(f" {phrase} " in text for phrase in phrases):
                named[attribute] = value
    return named


def unknown_words(prompt: str) -> tuple[str, ...]:
    """The words of a prompt that the model never saw, in order, once each; without articles, which say nothing to it."""
    known = {*known_words(), *ARTICLES}
    return tuple(dict.fromkeys(word for word in words_of(prompt) if word not in known))
