"""What a run is asked for, and the limits on it. ``Plan.of`` makes a plan of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aig.runs import columns
from aig.runs.columns import MAX_EXTRA, MAX_LORA_SCALE, Extra
from aig.runs.facts import Facts

MAX_IMAGES = 16  # a column; a 4 x 4 grid is what a projector shows
MAX_STEPS = 100  # more change nothing that one could see
MAX_GUIDANCE = 20.0  # beyond it images burn out
MAX_SEED = 2**31 - 1  # what a 32-bit client can send
MAX_PROMPT = 400  # characters; the words are counted as well
MAX_SCHEDULE = 2_000  # characters: 64 drawn points
MAX_KL = 1e6  # far beyond any coefficient in use
MAX_NAME = 600  # characters of a model's name, which may spell out two repositories


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to compare. The defaults are those of the page, the API and the command line."""

    prompt: str = ""  # empty: unconditional
    seed: int = 7  # image k of a column has seed + k
    images: int = 9  # a column, 1 to 16
    steps: int = 12  # denoising steps T, 1 to 100
    guidance: float = 3.0  # classifier-free guidance scale, 0 to 20; off up to 1
    schedule: str = "power_2"
    tuning: str = "preference"  # the tuned model, one of those of ``model``
    lora_scale: float = 1.0  # of the tuned model, 0 to 1.5
    kl: float = 0.0  # coefficient with which the tuned model was trained, one of the model's
    closed: bool = False  # progress i/(T-1) instead of i/T, so that the last step is the tuned model's
    columns: tuple[str, ...] = ()  # beside base, tuned and AIG, up to 3, in the forms of ``columns.parse``
    model: str = ""  # empty: the one that the app starts with

    def __post_init__(self) -> None:
        if isinstance(self.columns, list):  # all that JSON knows
            object.__setattr__(self, "columns", tuple(self.columns))

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.images)


def check(request: Request, facts: Facts) -> None:
    """ValueError, one sentence with the value and the choices, for a setting that is out of range by itself."""
    prompt = request.prompt
    if not isinstance(prompt, str):
        raise ValueError(f"The prompt must be text, not {type(prompt).__name__}.")
    if len(prompt) > MAX_PROMPT:
        raise ValueError(f"The prompt has {len(prompt)} characters; up to {MAX_PROMPT} are allowed.")
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in prompt):
        raise ValueError("The prompt contains a character that is not text (NUL or half of a surrogate pair).")
    words = max(len(prompt.split()), len(re.findall(r"[^\W_]+", prompt)))
    if words > facts.max_words:
        raise ValueError(f"The prompt has {words} words; the model reads up to {facts.max_words}.")
    _whole("seed", request.seed, 0, MAX_SEED - MAX_IMAGES)
    _whole("number of images", request.images, 1, MAX_IMAGES)
    _whole("number of steps", request.steps, 1, MAX_STEPS)
    _number("guidance scale", request.guidance, 0.0, MAX_GUIDANCE)
    _number("LoRA scale", request.lora_scale, 0.0, MAX_LORA_SCALE)
    if not isinstance(request.closed, bool):
        raise ValueError(f"The setting that ends the curve at 1 must be true or false, not {_shown(request.closed)}.")
    _number("KL coefficient", request.kl, 0.0, MAX_KL)
    if not isinstance(request.tuning, str) or request.tuning not in facts.tunings:
        raise ValueError(f"There is no tuned model {_shown(request.tuning)}; choose one of: {', '.join(facts.tunings)}.")
    known = facts.tunings[request.tuning]
    if request.kl not in known:
        raise ValueError(f"No model was tuned with KL coefficient {request.kl:g}; choose one of {', '.join(f'{kl:g}' for kl in known)}.")
    if not isinstance(request.schedule, str):
        raise ValueError(f"The schedule must be text, not {type(request.schedule).__name__}.")
    if len(request.schedule) > MAX_SCHEDULE:
        raise ValueError(f"The schedule has {len(request.schedule)} characters; up to {MAX_SCHEDULE} are allowed.")


def extras(texts: object) -> list[Extra]:
    """The added columns of a request, parsed. ValueError when there are too many, two are the same, or one is none."""
    if not isinstance(texts, tuple) or len(texts) > MAX_EXTRA:
        shown = f"{len(texts)} of them" if isinstance(texts, tuple) else _shown(texts)
        raise ValueError(f"The added columns must be a list of up to {MAX_EXTRA} texts, not {shown}.")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"A column must be text, not {_shown(text)}.")
        if len(text) > MAX_SCHEDULE:
            raise ValueError(f"A column's text has {len(text)} characters; up to {MAX_SCHEDULE} are allowed.")
    found = [columns.parse(text) for text in texts]
    names = [extra.name for extra in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"The column {twice[0][:60]} was added twice.")
    return found


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"The {name} must be a whole number from {low} to {high}, not {_shown(value)}.")


def _number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"The {name} must be a number from {low:g} to {high:g}, not {_shown(value)}.")


def _shown(value: object) -> str:
    return ascii(value)[:40] if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
