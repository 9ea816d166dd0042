"""The population of drawings: every attribute, its words, its distribution, and how each DiceBear style draws it.

This file is the ground truth of the embedded world. A drawing is sampled attribute by attribute from the distributions
declared here, so the true diversity of the training data is known exactly. ``STYLES`` maps the words used in captions to the
variant names of each DiceBear style; it is meant to be read and checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

NONE = "none"  # the value of an attribute that a drawing cannot show: a robot's hair, hair under a hat

BACKGROUNDS = {
    "white": "f8f8f6", "gray": "b9bec5", "pink": "f8b0c8", "yellow": "f8e080",
    "green": "9fd8a0", "blue": "92c4f4", "purple": "c0a2ec", "orange": "f7ae72",
}  # fmt: skip
HAIR = {
    "black": "1d1b20", "brown": "6e4426", "blond": "e8c55c", "red": "cc3f1e",
    "silver": "c3c6cc", "teal": "27a39a", "magenta": "d8459c",
}  # fmt: skip
SKIN = {"light": "ffdcbc", "medium": "cb8f60", "dark": "6d432b"}
OUTFIT = {
    "black": "2b2d33", "white": "f1efe9", "red": "d6323c", "orange": "f08a24",
    "yellow": "f2cf34", "green": "3fa35a", "blue": "3567d6", "purple": "7b46c4",
}  # fmt: skip
MOODS = ("smiling", "neutral", "sad", "surprised")

#: Every attribute with its possible values, in the order of the label columns.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "style": ("avataaars", "big smile", "micah", "open peeps", "personas", "toon head", "bottts", "pixel art"),
    "background": tuple(BACKGROUNDS),
    "hair colour": (*HAIR, NONE),
    "hair length": ("bald", "short", "long", NONE),
    "skin": (*SKIN, NONE),
    "glasses": ("no", "yes"),
    "beard": ("no", "yes"),
    "hat": ("no", "yes"),
    "mood": MOODS,
    "outfit": (*OUTFIT, NONE),
}

# Probability of the "yes" of each accessory, in the styles that have it.
P_GLASSES, P_BEARD, P_HAT = 0.4, 0.25, 0.2
HAIR_LENGTHS = {"bald": 0.15, "short": 0.425, "long": 0.425}

Options = dict[str, object]


def _series(prefix: str, *numbers: int) -> list[str]:
    return [f"{prefix}{n:02d}" for n in numbers]


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one DiceBear style draws the attributes; an attribute that is absent here cannot be drawn in this style."""

    name: str  # of the DiceBear collection
    fixed: Mapping[str, object]
    moods: Mapping[str, Mapping[str, list[str]]]  # mood -> option -> variants
    lengths: Mapping[str, Mapping[str, object]]  # hair length -> options
    skin: str | None = "skinColor"
    hair: tuple[str, ...] = ("hairColor",)
    hair_colours: tuple[str, ...] = tuple(HAIR)
    outfit: str | None = None
    glasses: Mapping[str, object] | None = None  # options that put them on
    plain: Mapping[str, object] | None = None  # options that take them off
    beard: Mapping[str, object] | None = None
    hat: Mapping[str, object] | None = None


STYLES: dict[str, Style] = {
    "avataaars": Style(
        name="avataaars",
        fixed={
            "clothing": ["blazerAndShirt", "collarAndSweater", "hoodie", "overall", "shirtCrewNeck", "shirtVNeck"],
            "accessoriesProbability": 0, "facialHairProbability": 0, "accessoriesColor": ["262e33"],
            "hatColor": list(OUTFIT.values()),
        },
        moods={
            "smiling": {"mouth": ["smile"], "eyes": ["happy"], "eyebrows": ["defaultNatural"]},
            "neutral": {"mouth": ["serious"], "eyes": ["default", "side"], "eyebrows": ["flatNatural"]},
            "sad": {"mouth": ["sad"], "eyes": ["default"], "eyebrows": ["sadConcernedNatural"]},
            "surprised": {"mouth": ["screamOpen"], "eyes": ["surprised"], "eyebrows": ["raisedExcitedNatural"]},
        },
        lengths={
            "bald": {"topProbability": 0},
            "short": {"top": ["shortFlat", "shortRound", "shortWaved", "theCaesar", "shortCurly", "dreads01"]},
            "long": {"top": ["straight01", "straight02", "curvy", "bigHair", "bob", "curly", "longButNotTooLong"]},
        },
        hair=("hairColor", "facialHairColor"),
        outfit="clothesColor",
        glasses={"accessories": ["prescription01", "prescription02", "round"], "accessoriesProbability": 100},
        beard={"facialHair": ["beardLight", "beardMedium", "beardMajestic"], "facialHairProbability": 100},
        hat={"top": ["winterHat1", "winterHat02", "winterHat03", "hat"]},
    ),
    "big smile": Style(
        name="bigSmile",
        fixed={"accessoriesProbability": 0},
        moods={
            "smiling": {"mouth": ["openedSmile", "teethSmile", "gapSmile"], "eyes": ["cheery", "normal"]},
            "neutral": {"mouth": ["unimpressed"], "eyes": ["normal", "sleepy"]},
            "sad": {"mouth": ["openSad"], "eyes": ["sad"]},
        },
        lengths={
            "short": {"hair": ["shortHair", "mohawk", "bowlCutHair", "curlyShortHair"]},
            "long": {"hair": ["wavyBob", "curlyBob", "straightHair", "bangs"]},
        },
        glasses={"accessories": ["glasses"], "accessoriesProbability": 100},
    ),
    "micah": Style(
        name="micah",
        fixed={
            "earringsProbability": 0, "facialHairProbability": 0, "glassesProbability": 0,  # its beard hides the mouth
            "eyes": ["eyes", "round"], "glassesColor": ["000000"],
        },
        moods={
            "smiling": {"mouth": ["smile", "laughing"], "eyebrows": ["up"]},
            "neutral": {"mouth": ["pucker"], "eyebrows": ["up", "down"]},
            "sad": {"mouth": ["sad", "frown"], "eyebrows": ["down"]},
            "surprised": {"mouth": ["surprised"], "eyebrows": ["up"]},
        },
        lengths={
            "bald": {"hair": ["mrClean"]},
            "short": {"hair": ["fonze", "dougFunny", "dannyPhantom"]},
            "long": {"hair": ["full", "pixie"]},
        },
        skin="baseColor",
        outfit="shirtColor",
        glasses={"glasses": ["round", "square"], "glassesProbability": 100},
    ),
    "open peeps": Style(
        name="openPeeps",
        fixed={
            "accessoriesProbability": 0, "facialHairProbability": 0, "maskProbability": 0,
            "headContrastColor": [HAIR["black"]],
        },
        moods={
            "smiling": {"face": ["smileBig", "lovingGrin1"]},
            "neutral": {"face": ["blank", "serious"]},
            "sad": {"face": ["concerned"]},
            "surprised": {"face": ["awe", "fear"]},
        },
        lengths={
            "bald": {"head": ["noHair1", "noHair2", "noHair3"]},
            "short": {"head": ["short1", "short2", "short4", "short5", "pomp"]},
            "long": {"head": ["long", "longBangs", "longCurly", "medium1", "medium2", "mediumStraight"]},
        },
        hair=(),
        hair_colours=("black",),
        outfit="clothingColor",
        glasses={"accessories": ["glasses", "glasses2", "glasses3"], "accessoriesProbability": 100},
        beard={"facialHair": ["full", "full2", "full3"], "facialHairProbability": 100},
        hat={"head": ["hatBeanie", "hatHip"], "headContrastColor": list(OUTFIT.values())},
    ),
    "personas": Style(
        name="personas",
        fixed={"facialHairProbability": 0, "nose": ["mediumRound", "smallRound"], "body": ["squared", "rounded", "small"]},
        moods={
            "smiling": {"mouth": ["smile", "bigSmile"]},
            "sad": {"mouth": ["frown"]},
            "surprised": {"mouth": ["surprise"]},
        },
        lengths={
            "bald": {"hair": ["bald"]},
            "short": {"hair": ["shortCombover", "curlyHighTop", "buzzcut", "fade", "mohawk"]},
            "long": {"hair": ["long", "bobCut", "extraLong", "bobBangs", "pigtails"]},
        },
        outfit="clothingColor",
        glasses={"eyes": ["glasses"]},
        plain={"eyes": ["open", "happy"]},
        beard={"facialHair": ["goatee", "pyramid"], "facialHairProbability": 100},
        hat={"hair": ["cap", "beanie"]},
    ),
    "toon head": Style(
        name="toonHead",
        fixed={"beardProbability": 0, "rearHairProbability": 0, "clothes": ["turtleNeck", "shirt", "tShirt", "dress"]},
        moods={
            "smiling": {"mouth": ["laugh"], "eyes": ["happy"], "eyebrows": ["happy", "raised"]},
            "sad": {"mouth": ["sad"], "eyes": ["humble"], "eyebrows": ["sad"]},
            "surprised": {"mouth": ["agape"], "eyes": ["wide"], "eyebrows": ["raised"]},
        },
        lengths={
            "bald": {"hairProbability": 0},
            "short": {"hair": ["sideComed", "undercut", "spiky"]},
            "long": {
                "hair": ["sideComed", "undercut"], "rearHair": ["longStraight", "longWavy", "shoulderHigh"],
                "rearHairProbability": 100,
            },
        },
        outfit="clothesColor",
        beard={"beard": ["fullBeard", "longBeard"], "beardProbability": 100},
    ),
    "bottts": Style(
        name="bottts",
        fixed={
            "textureProbability": 0, "sides": ["antenna01", "round", "square", "cables01"],
            "top": ["antenna", "bulb01", "glowingBulb01", "horns", "pyramid", "radar"],
            "eyes": ["bulging", "eva", "frame1", "frame2", "happy", "robocop", "round", "roundFrame01", "shade01"],
        },
        moods={
            "smiling": {"mouth": ["smile01", "smile02"]},
            "neutral": {"mouth": ["grill01", "grill02", "square01", "diagram"]},
        },
        lengths={},
        skin=None,
        hair=(),
        outfit="baseColor",
    ),
    "pixel art": Style(
        name="pixelArt",
        fixed={"accessoriesProbability": 0, "beardProbability": 0, "glassesProbability": 0, "hatProbability": 0,
               "hatColor": ["2e1e05", "2663a3", "614f8a", "a62116"], "glassesColor": ["191919"],
               "clothing": _series("variant", 1, 3, 5, 8, 12, 16, 20)},
        moods={
            "smiling": {"mouth": _series("happy", 6, 9, 12)},
            "sad": {"mouth": _series("sad", 1, 9)},
        },
        lengths={
            "bald": {"hairProbability": 0},
            "short": {"hair": _series("short", 1, 4, 7, 10, 13, 16, 19, 22), "hairProbability": 100},
            "long": {"hair": _series("long", 1, 4, 7, 10, 13, 16, 19), "hairProbability": 100},
        },
        outfit="clothingColor",
        glasses={"glasses": _series("light", 1, 2, 3, 4, 5, 6, 7), "glassesProbability": 100},
        beard={"beard": _series("variant", 1, 2, 3, 4), "beardProbability": 100},
        hat={"hat": _series("variant", 1, 2, 3, 4, 5, 6, 7), "hatProbability": 100, "hairProbability": 0},
    ),
}  # fmt: skip


def _pick(rng: np.random.Generator, choices, p=None) -> str:
    choices = list(choices)
    return choices[int(rng.choice(len(choices), p=p))]


def sample_attributes(rng: np.random.Generator) -> dict[str, str]:
    """Draw one person or robot from the declared distribution: attribute name -> value."""
    style_name = _pick(rng, ATTRIBUTES["style"])
    style = STYLES[style_name]
    hat = bool(style.hat) and rng.random() < P_HAT
    lengths = [] if hat else list(style.lengths)
    weights = np.array([HAIR_LENGTHS[length] for length in lengths])
    length = _pick(rng, lengths, weights / weights.sum()) if lengths else NONE
    beard = bool(style.beard) and rng.random() < P_BEARD
    coloured = length in ("short", "long") or beard
    return {
        "style": style_name,
        "background": _pick(rng, BACKGROUNDS),
        "hair colour": _pick(rng, style.hair_colours) if coloured else NONE,
        "hair length": length,
        "skin": _pick(rng, SKIN) if style.skin else NONE,
        "glasses": "yes" if style.glasses and rng.random() < P_GLASSES else "no",
        "beard": "yes" if beard else "no",
        "hat": "yes" if hat else "no",
        "mood": _pick(rng, style.moods),
        "outfit": _pick(rng, OUTFIT) if style.outfit else NONE,
    }


def draw_options(attributes: Mapping[str, str], seed: str) -> dict[str, object]:
    """DiceBear's input for a drawing with these attributes; ``seed`` decides the variants that no attribute names."""
    style = STYLES[attributes["style"]]
    options: Options = {"seed": seed, "backgroundColor": [BACKGROUNDS[attributes["background"]]], **style.fixed}
    options |= style.moods[attributes["mood"]]
    if attributes["hat"] == "yes":
        options |= style.hat or {}
    else:
        options |= style.lengths.get(attributes["hair length"], {})
    if attributes["beard"] == "yes":
        options |= style.beard or {}
    options |= (style.glasses if attributes["glasses"] == "yes" else style.plain) or {}
    if attributes["hair colour"] != NONE:
        options |= {name: [HAIR[attributes["hair colour"]]] for name in style.hair}
    if style.skin:
        options[style.skin] = [SKIN[attributes["skin"]]]
    if style.outfit:
        options[style.outfit] = [OUTFIT[attributes["outfit"]]]
    return {"style": style.name, "options": options}


def encode(attributes: Mapping[str, str]) -> list[int]:
    """Attribute values as label indices, in the order of ``ATTRIBUTES``."""
    return [values.index(attributes[name]) for name, values in ATTRIBUTES.items()]


def decode(labels) -> dict[str, str]:
    """The inverse of ``encode``."""
    return {name: values[int(i)] for (name, values), i in zip(ATTRIBUTES.items(), labels, strict=True)}
