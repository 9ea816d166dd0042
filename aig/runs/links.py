"""A run's settings as one line of text for links and pictures: readable, versioned, and as it is a valid query value.

``v1!prompt=a+person+with+glasses!seed=7!schedule=power_2``: every field of a Request by its name. Letters, digits and
``_.-:,;`` stand for themselves, a space is ``+``, any other character is its UTF-8 bytes as ``~`` and two hex digits
each. An item of a tuple begins with ``*``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, get_type_hints

from aig.runs.request import Request

VERSION = "v1"
MAX_LINK = 12_000  # characters: the longest prompt and schedule fit, written as escapes throughout

_PLAIN = re.compile(r"[A-Za-z0-9_.\-:,;]")
_WRITTEN = re.compile(r"(?:[A-Za-z0-9_.\-:,; +]|~[0-9A-F]{2})*")
_WHOLE = re.compile(r"-?\d{1,12}", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,20}(\.\d{1,20})?(e[+\- ]?\d{1,3})?", re.ASCII)  # a "+" of a query value reads as a space


def encode(request: Request) -> str:
    """The text of a request. ValueError when a value has no such form (half a surrogate pair, infinity)."""
    kinds = _kinds()
    return "!".join([VERSION, *(f"{name}={_write(kinds[name], getattr(request, name), name)}" for name in kinds)])


def decode(text: object) -> Request:
    """The request that a text describes; fields that it leaves out have their defaults. The values' ranges are not checked.

    Raises ValueError with one sentence for anything that ``encode`` would not write.
    """
    if not isinstance(text, str):
        raise ValueError(f"The settings of a link must be text, not {type(text).__name__}.")
    if len(text) > MAX_LINK:
        raise ValueError(f"The link is too long: {len(text):,} characters of settings; up to {MAX_LINK:,} are read.")
    version, *parts = text.split("!")
    if version != VERSION:
        raise ValueError(f"The link begins with {_short(version)}; this app reads links that begin with {VERSION!r}.")
    kinds, found = _kinds(), {}
    for part in parts:
        name, equals, value = part.partition("=")
        if name not in kinds or not equals:
            raise ValueError(f"The link has the setting {_short(name)}, which is none of {', '.join(kinds)}.")
        if name in found:
            raise ValueError(f"The link has the setting {name!r} twice.")
        found[name] = _read(kinds[name], value, name)
    return Request(**found)


def _kinds() -> dict[str, object]:
    hints = get_type_hints(Request)
    return {field.name: hints[field.name] for field in dataclasses.fields(Request)}


def _write(kind: object, value: Any, name: str) -> str:
    if kind is str:
        return _escape(value, name)
    if kind is bool:
        return "yes" if value else "no"
    if kind is int:
        return str(int(value))
    if kind is float:
        if not math.isfinite(value):
            raise ValueError(f"The setting {name!r} is {value}, which no link can hold.")
        return repr(float(value)).removesuffix(".0")
    return "".join(f"*{_escape(item, name)}" for item in value)  # tuple[str, ...], the only other kind


def _read(kind: object, text: str, name: str) -> object:
    if kind is str:
        return _unescape(text, name)
    if kind is bool:
        return _known({"yes": True, "no": False}.get, text, name, "yes or no")
    if kind is int:
        return _known(lambda word: int(word) if _WHOLE.fullmatch(word) else None, text, name, "a whole number")
    if kind is float:
        return _known(_finite, text, name, "a number")
    if text and not text.startswith("*"):
        raise ValueError(f"The link gives {name!r} as {_short(text)}; it must be a list whose items begin with '*'.")
    return tuple(_unescape(item, name) for item in text.split("*")[1:])


def _finite(word: str) -> float | None:
    number = float(word.replace(" ", "+")) if _NUMBER.fullmatch(word) else math.nan
    return number if math.isfinite(number) else None


def _known(read: Callable[[str], object], text: str, name: str, wanted: str) -> object:
    value = read(text)
    if value is None:
        raise ValueError(f"The link gives {name!r} as {_short(text)}; it must be {wanted}.")
    return value


def _escape(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"The setting {name!r} contains half of a surrogate pair, which no link can hold.") from None

    def one(character: str) -> str:
        if _PLAIN.match(character):
            return character
        return "+" if character == " " else "".join(f"~{byte:02X}" for byte in character.encode())

    return "".join(map(one, text))


def _unescape(text: str, name: str) -> str:
    if _WRITTEN.fullmatch(text):
        spaced = text.replace("+", " ").encode()
        try:
            return re.sub(rb"~(..)", lambda found: bytes([int(found[1], 16)]), spaced).decode()
        except UnicodeDecodeError:
            pass
    raise ValueError(f"The link gives {name!r} as {_short(text)}, which is not written as links are.")


def _short(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:40] + "…")[:200]  # ten letters for a rare character
