"""What a run is asked for, and the complete check of it: every limit on the work that a request may cost is here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from aig import schedules
from aig.models import Model

MAX_IMAGES = 16  # a column; a 4 x 4 grid is what a projector shows
MAX_STEPS = 100  # more change nothing that one could see
MAX_GUIDANCE = 20.0  # beyond it images burn out
MAX_LORA_SCALE = 1.5  # a little extrapolation; more leaves the range in which the LoRA means anything
MAX_SEED = 2**31 - 1  # what a 32-bit client can send
MAX_PROMPT = 400  # characters; the words are counted as well
MAX_SCHEDULE = 2_000  # characters: 64 drawn points
MAX_ROWS = 8_000  # model evaluations of one image: about a minute on two cores


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to compare. The defaults are those of the page, the API and the command line."""

    prompt: str = ""  # empty: unconditional
    seed: int = 7  # image k of a column has seed + k
    images: int = 9  # a column, 1 to 16
    steps: int = 16  # denoising steps T, 1 to 100
    guidance: float = 4.0  # classifier-free guidance scale, 0 to 20; off up to 1
    schedule: str = "power_2"
    reward: str = "preference"  # that the tuned model was tuned on, one of the model's
    lora_scale: float = 1.0  # of the tuned model, 0 to 1.5
    kl: float = 0.0  # coefficient with which the tuned model was trained, one of the model's
    closed: bool = False  # progress i/(T-1) instead of i/T, so that the last step is the tuned model's

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.images)


def checked(request: Request, model: Model) -> tuple[float, ...]:
    """The shares of the AIG column. ValueError, one sentence with the value and the choices, for anything out of range."""
    prompt = request.prompt
    if not isinstance(prompt, str):
        raise ValueError(f"The prompt must be text, not {type(prompt).__name__}.")
    if len(prompt) > MAX_PROMPT:
        raise ValueError(f"The prompt has {len(prompt)} characters; up to {MAX_PROMPT} are allowed.")
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in prompt):
        raise ValueError("The prompt contains a character that is not text (NUL or half of a surrogate pair).")
    words = max(len(prompt.split()), len(re.findall(r"[^\W_]+", prompt)))
    if words > model.max_words:
        raise ValueError(f"The prompt has {words} words; the model reads up to {model.max_words}.")
    _whole("seed", request.seed, 0, MAX_SEED - MAX_IMAGES)
    _whole("number of images", request.images, 1, MAX_IMAGES)
    _whole("number of steps", request.steps, 1, MAX_STEPS)
    _number("guidance scale", request.guidance, 0.0, MAX_GUIDANCE)
    _number("LoRA scale", request.lora_scale, 0.0, MAX_LORA_SCALE)
    if not isinstance(request.closed, bool):
        raise ValueError(f"The setting that ends the curve at 1 must be true or false, not {_shown(request.closed)}.")
    _number("KL coefficient", request.kl, 0.0, math.inf)
    if not isinstance(request.reward, str) or request.reward not in model.tunings:
        raise ValueError(f"No model was tuned on the reward {_shown(request.reward)}; choose one of: {', '.join(model.tunings)}.")
    known = model.tunings[request.reward]
    if request.kl not in known:
        raise ValueError(f"No model was tuned with KL coefficient {request.kl:g}; choose one of {', '.join(f'{kl:g}' for kl in known)}.")
    if not isinstance(request.schedule, str):
        raise ValueError(f"The schedule must be text, not {type(request.schedule).__name__}.")
    if len(request.schedule) > MAX_SCHEDULE:
        raise ValueError(f"The schedule has {len(request.schedule)} characters; up to {MAX_SCHEDULE} are allowed.")
    shares = schedules.weights(schedules.parse(request.schedule), request.steps, closed=request.closed)
    rows = request.images * request.steps * 4 * (2 if request.guidance > 1 else 1)
    if rows > MAX_ROWS:
        raise ValueError(
            f"{request.images} images of {request.steps} steps need about {rows} model rows; up to {MAX_ROWS} are allowed."
        )
    return shares


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"The {name} must be a whole number from {low} to {high}, not {_shown(value)}.")


def _number(name: str, value: object, low: float, high: float) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    if not fits:
        upper = f" to {high:g}" if math.isfinite(high) else " up"
        raise ValueError(f"The {name} must be a number from {low:g}{upper}, not {_shown(value)}.")


def _shown(value: object) -> str:
    return ascii(value)[:40] if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
