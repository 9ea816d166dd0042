"""Published models on offer: from a preset to facts that need no weights, and on demand to a model ready for runs.

The base pipeline, one tuned model at a time and the two rewards that a run shows are in memory, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch

from aig.method import adapters, budget, families
from aig.published import downloads, hub, pipelines, presets, scorers
from aig.published.presets import Preset, Tuned
from aig.runs.facts import Facts
from aig.runs.models import Model, Offer

MAX_WORDS = 60  # what the 77 tokens of CLIP's text encoders hold of ordinary English
MAX_ROWS = 3_000  # a row takes about a hundred times longer than one of the embedded world
OWN = "own:"  # begins the name of a model from the "your own" form; its fields follow, with commas
FORM = ("pipeline", "base", "base_revision", "kind", "tuned", "revision", "weight_name", "subfolder")

Tell = Callable[[str], None]


def finder(names: Sequence[str], *, own: bool = False, backend: str | None = None) -> Callable[[str], Offer]:
    """What an engine asks for models: name -> offer, for these presets, and for a visitor's own models if allowed.

    backend: of torch.compile, None to leave the denoisers as they are.
    """

    @lru_cache(maxsize=64)
    def find(name: str) -> Offer:
        if own and name.startswith(OWN):
            return offer(described(name), backend)
        if name not in names:
            raise ValueError(f"Unknown model {ascii(name)[:60]}; choose one of: {', '.join(('portraits', *names))}.")
        return offer(presets.load(name), backend)

    return find


def tuned_presets() -> tuple[str, ...]:
    """The presets that can be compared: those with tuned weights."""
    return tuple(name for name in presets.names() if presets.load(name).tuned)


def fitting(free: int | None = None) -> tuple[str, ...]:
    """Those whose weights fit into the memory of this machine's GPU; none without one. free: its bytes, if known."""
    if free is None:
        free = pipelines.free_bytes("cuda") if torch.cuda.is_available() else 0
    return tuple(name for name in tuned_presets() if presets.load(name).memory * 1e9 < free)


def chosen(names: str | None) -> tuple[str, ...]:
    """The presets that an operator names, with commas between them, or "all" or "none"; None for those that fit into the GPU."""
    if not names:
        return fitting()
    if names in ("all", "none"):
        return tuned_presets() if names == "all" else ()
    found = tuple(name.strip() for name in names.split(","))
    if unknown := [name for name in found if name not in tuned_presets()]:
        raise ValueError(f"No preset {unknown[0]!r} with tuned weights; choose among: all, none, {', '.join(tuned_presets())}.")
    return found


def own_name(form: Sequence[object]) -> str:
    """The name of a model of one's own, by the values of FORM. ValueError says which of them is wrong and why."""
    name = OWN + ",".join(str(value).strip() for value in form)
    described(name)
    return name


def described(name: str) -> Preset:
    """The preset that the name of a model of one's own spells out. ValueError when it does not."""
    values = name.removeprefix(OWN).split(",")
    if len(values) != len(FORM):
        raise ValueError(f"A model of your own is named by {len(FORM)} fields ({', '.join(FORM)}), not {len(values)}.")
    given = {field: value for field, value in zip(FORM, values, strict=True) if value}
    if missing := [field for field in ("pipeline", "base", "kind", "tuned") if field not in given]:
        raise ValueError(f"A model of your own needs its {missing[0]}.")
    return replace(presets.own(**given), name=name)


def offer(preset: Preset, backend: str | None = None) -> Offer:
    """The preset as something that an engine can load; backend as in ``finder``."""
    return Offer(
        facts=facts(preset),
        load=partial(load, preset, backend=backend),
        missing=partial(missing, preset),
        fetch=partial(fetch, preset),
    )


def facts(preset: Preset) -> Facts:
    """What a preset says of its model."""
    # where tuning saw no reward model, or one that is not here, the preset's first reward stands in
    proxies = {tuned.name: tuned.reward if tuned.reward in scorers.SCORERS else preset.rewards[0] for tuned in preset.tuned}
    return Facts(
        name=preset.name,
        title=preset.title,
        tunings={tuned.name: (0.0,) for tuned in preset.tuned},
        proxies=proxies,
        rewards=tuple(dict.fromkeys((*preset.rewards, *proxies.values(), preset.held_out))),
        held_out=preset.held_out,
        size=preset.size,
        max_words=MAX_WORDS,
        max_rows=MAX_ROWS,
        distilled=preset.pipeline in families.DISTILLED,
        defaults={"steps": preset.steps, "guidance": preset.guidance, "closed": preset.closed, "images": 4},
        about=_terms(preset) + (f" Needs about {preset.memory:g} GB of memory." if preset.memory else ""),
        notes={tuned.name: f"Tuned on: {tuned.reward}. {_terms(tuned)} {tuned.source}." for tuned in preset.tuned},
    )


def _terms(source: Preset | Tuned) -> str:
    """Where weights come from, under which licence, and what fetching them costs."""
    if presets.is_local(source.repo):
        place = f"{source.repo}, a folder on this machine"
    else:
        place = f"{source.repo} at {source.revision[:8] if source.pinned else source.revision + ', not pinned'}"
    size = f", {source.download:g} GB to download" if source.download else ""
    gated = ", gated: its terms must be accepted on the Hub first" if getattr(source, "gated", False) else ""
    return f"{place}. Licence {source.licence}{size}{gated}."


def sources(preset: Preset, tuning: str) -> list[hub.Source]:
    """All that runs of a tuned model read: the base, the tuned weights, the features and the rewards that are shown."""
    names = (preset.features, *facts(preset).judges(tuning))
    return [preset, *(tuned for tuned in preset.tuned if tuned.name == tuning), *(source for name in names for source in listed(name))]


def missing(preset: Preset, tuning: str) -> bool:
    """Whether something of that is not on this machine, which is all that is looked at; ``fetch`` then gets it or says why not."""
    try:
        return not all(map(downloads.located, sources(preset, tuning)))
    except ValueError:  # a folder of one's own that is not there
        return True


def fetch(preset: Preset, tuning: str, tell: Tell) -> None:
    """Download what is missing. Raises ValueError (``hub.Unavailable``) with one sentence when it cannot be had."""
    for source in sources(preset, tuning):
        folder(source, tell, anonymous=private(preset) and source in (preset, *preset.tuned))


def private(preset: Preset) -> bool:
    """Whether it is a visitor's, who sees nothing that only the operator's token may read."""
    return preset.name.startswith(OWN)


def load(preset: Preset, tell: Tell, *, backend: str | None = None) -> Model:
    """Fetch what is not on this machine yet and load the base model; tuned models and rewards follow when a run asks.

    tell: receives a line now and then. backend: as in ``finder``. Raises ValueError (``hub.Unavailable``) with one sentence
    when it cannot be had.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    place, about = folder(preset, tell, anonymous=private(preset)), facts(preset)
    tell(f"Loading {preset.title}")
    pipe = pipelines.load(place, preset.pipeline, dtype=dtype, device=device)
    features = scorers.load_features(preset.features, judge_folders(preset.features, tell), device=device, dtype=dtype)
    known = {tuned.name: tuned for tuned in preset.tuned}
    ready: dict[str, pipelines.Tuning] = {}
    rewards: dict[str, torch.nn.Module] = {}
    fits = [budget.UNLIMITED]

    def prepare(tuning: str, tell: Tell) -> None:
        if tuning in ready:
            return
        drop()
        for name in [name for name in rewards if name not in about.judges(tuning)]:
            pipelines.release(rewards.pop(name))
        for name in about.judges(tuning):
            if name not in rewards:
                tell(f"Loading the reward {name}")
                rewards[name] = scorers.load(name, judge_folders(name, tell), device=device, dtype=dtype)
        source = known[tuning]
        weights = folder(source, tell, anonymous=private(preset))
        tell(f"Loading {tuning}")
        ready[tuning] = pipelines.tuned(pipe, source, weights, work_bytes=budget.least(pipe, preset.size))
        if backend:  # last: a twin is a copy, and a LoRA is attached
            pipelines.compile_blocks(adapters.denoiser(pipe), *ready[tuning].holds, backend=backend)
        fits[0] = budget.measured(pipe, preset.size)

    def drop() -> None:
        held = list(ready.values())
        ready.clear()  # first: whatever happens, nothing half freed is used again
        for tuning in held:
            pipelines.release(*tuning.holds)
        adapters.detach(adapters.denoiser(pipe))

    def release() -> None:
        drop()
        if backend:
            torch.compiler.reset()  # its graphs are of no use to another model
        pipelines.release(pipe, features, *rewards.values())

    return Model(
        facts=about,
        pipe=pipe,
        rewards=rewards,
        twin=lambda tuning, kl, scale: ready[tuning].at(scale),
        moving=lambda tuning, kl: ready[tuning].at,
        measure=lambda images: (features(images.to(device)).cpu(), {}),
        prepare=prepare,
        release=release,
        budget=lambda: fits[0],
        size=preset.size,
    )


def folder(source: hub.Source, tell: Tell, *, anonymous: bool = False) -> Path:
    """The folder of complete files, downloaded if need be by a process that may use the network."""
    if place := downloads.located(source):
        return place
    for event in downloads.apart(source, anonymous=anonymous):
        if "plan" in event:
            tell(event["plan"])
        elif "done" in event:
            tell(f"Downloading {source.repo}: {event['done'] / 1e9:.2f} of {event['total'] / 1e9:.2f} GB")
    return Path(event["folder"])


def listed(name: str) -> list[hub.Listed]:
    """The files that a reward or feature model reads, by repository."""
    repos: dict[tuple[str, str], list[str]] = {}
    for repo, revision, file in scorers.files(name):
        repos.setdefault((repo, revision or "main"), []).append(file)
    return [hub.Listed(repo=repo, revision=revision, files=tuple(files)) for (repo, revision), files in repos.items()]


def judge_folders(name: str, tell: Tell) -> dict[str, Path]:
    """Repository -> folder, of everything that a reward or feature model reads."""
    return {source.repo: folder(source, tell) for source in listed(name)}
