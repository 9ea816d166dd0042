"""From the engine's requests and updates to what the stage shows: the wording of every number, no HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest

import numpy as np

from aig.measures.intervals import Interval
from aig.measures.scores import TOO_FEW, ColumnScores
from aig.runs import export, links
from aig.runs.comparison import Update
from aig.runs.facts import LABELS
from aig.runs.plan import Plan
from aig.runs.request import Request
from aig.ui import pictures
from aig.ui.parts.stage import Bar, Grid, Metric, Stage, Trace, asked

HUES = ("base", "tuned", "aig", "extra-1", "extra-2", "extra-3")  # the colour of each column
DENOISING = "Denoising all columns, in step."
INVITATION = "Same prompt, same seeds, three models. Press Run."


def number(value: float | None, digits: int = 2) -> str:
    """A number with a real minus sign, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def span(interval: Interval, digits: int = 2) -> str:
    """The ends of an interval, or what it lacks to have any."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"needs {max(2, interval.n + 1)} images"
    return f"{number(interval.low, digits)} to {number(interval.high, digits)}"


def metrics(column: ColumnScores, base: ColumnScores) -> tuple[Metric, ...]:
    """The scores of a column, each with its interval and its paired difference from the base column."""

    def metric(label: str, key: str, interval: Interval, digits: int = 2) -> Metric:
        delta = column.deltas.get(key)
        return Metric(
            label=label,
            value=number(interval.value, digits),
            delta=_signed(delta.value, digits) if delta else "",
            sure=bool(delta) and delta.excludes(0),
            note=span(interval, digits),
        )

    shown = [metric(LABELS.get(name, name), name, interval) for name, interval in column.rewards.items()]
    if column.diversity is None or column.vendi is None or base.vendi is None:
        lone = partial(Metric, value="–", note="needs 2 images")
        return (*shown, lone(label="Diversity"), lone(label="Vendi score"))
    vendi = Metric(
        label="Vendi score",
        value=number(column.vendi, 1),
        delta=_signed(column.vendi - base.vendi, 1) if column.deltas else "",
        note=f"of {column.diversity.n}",
    )
    return (*shown, metric("Diversity", "diversity", column.diversity, 3), vendi)


def _signed(value: float, digits: int) -> str:
    text = number(value, digits)
    return text if text.startswith(("−", "–")) else f"+{text}"


def idle(plan: Plan) -> Stage:
    """The stage before the first run: the grids, empty."""
    return _stage(plan, state="idle", sentence=INVITATION, status="Ready")


def longer(trace: Trace, update: Update) -> Trace:
    """The trace with the step that an update shows; an update without scores begins a new one."""
    points = trace.points
    if update.scores is None:
        points = ()
    elif not points or points[-1][0] < update.step:
        values = (c.diversity.value if c.diversity else None for c in update.scores.columns)
        points = (*points, (update.step, tuple(values)))
    return Trace(steps=update.plan.steps, shares=update.plan.aig.shares, points=points)


def shown(update: Update, notice: str = "", trace: Trace | None = None) -> Stage:
    """The stage at one update of a run; ``trace`` holds the steps up to this one."""
    stage = _shown(update, notice)
    return replace(stage, trace=trace or longer(Trace(), update), link=links.encode(update.plan.request))


def _shown(update: Update, notice: str) -> Stage:
    plan, stage = update.plan, partial(_stage, update.plan, state=update.state)
    if update.state == "waiting":
        status = "Next in line" if update.place == 1 else f"Waiting, place {update.place}"
        return stage(sentence="Waiting for the model.", status=status, notice=notice)
    if update.state == "loading":
        return stage(sentence="Loading the model.", status=update.note or "Loading", notice=notice)
    if update.scores is None or update.images is None:
        return stage(sentence=DENOISING, status="Starting", notice=notice)
    final = update.state == "done"
    if final:
        status = f"{plan.request.steps} steps · {update.seconds:.1f} s · {update.rows:,} model evaluations"
    else:
        left = f" · {max(1, round(update.left))} s left" if update.left is not None else ""
        status = f"Step {update.step} of {plan.steps}{left}"
    base = next(column for column in update.scores.columns if column.role == "base")
    return stage(
        sentence=DENOISING if update.scores.headline == TOO_FEW and not final else update.scores.headline,
        status=status,
        share=update.step / plan.steps,
        metrics=[metrics(column, base) for column in update.scores.columns],
        pictures=[pictures.data_url(pictures.mosaic(pictures.reduced(images)), final=final) for images in update.images],
        attributes={
            name: [
                Bar(kind=hue, label=column.label, shares=scores.attributes[name].shares, entropy=scores.attributes[name].entropy)
                for hue, column, scores in zip(HUES, plan.columns, update.scores.columns)
            ]
            for name in (base.attributes if plan.request.images > 1 else ())
        },
        notice=notice,
    )


def replayed(updates: Sequence[Update]) -> list[Stage]:
    """The stages of a recorded run."""
    stages, trace = [], Trace()
    for update in updates:
        trace = longer(trace, update)
        stage = shown(update, trace=trace)
        if update.state == "done":  # how long it took some other machine says nothing here
            stage = replace(stage, status=f"{update.step} steps · {update.rows:,} model evaluations")
        stages.append(replace(stage, recorded=True))
    return stages


def picture(view: Stage) -> bytes:
    """A stage with images as one labelled PNG, its settings inside."""
    images = np.stack([pictures.cells(column.picture, view.images) for column in view.columns])
    captions = ["\n".join(_pair(pair) for pair in zip(*[iter(column.metrics)] * 2, strict=False)) for column in view.columns]
    return export.grids(images, [column.title for column in view.columns], captions, view.link)


def _pair(metrics: Sequence[Metric]) -> str:
    return ", ".join(f"{metric.label.lower()} {metric.value}" for metric in metrics)


def ended(stage: Stage, status: str, notice: str = "") -> Stage:
    """The last stage of a run that did not finish: what was reached stays, marked as a preview."""
    return replace(stage, state="stopped", status=status, notice=notice or stage.notice)


def unknown(words: Sequence[str]) -> str:
    """The note about words that the model never saw, "" without any."""
    if not words:
        return ""
    quoted = ", ".join(f"“{word}”" for word in words[:8]) + (", …" if len(words) > 8 else "")
    subject, object_ = ("this word", "it") if len(words) == 1 else ("these words", "them")
    return f"The model never saw {subject} and ignores {object_}: {quoted}."


def _stage(
    plan: Plan,
    *,
    state: str,
    sentence: str,
    status: str,
    share: float = 0.0,
    metrics: Sequence[Sequence[Metric]] = (),
    pictures: Sequence[str] = (),
    attributes: dict[str, list[Bar]] | None = None,
    notice: str = "",
) -> Stage:
    """A stage with all columns of the plan; those that metrics and pictures do not reach yet are blank."""
    labels = (*(LABELS.get(name, name) for name in plan.judges), "Diversity", "Vendi score")
    blank = [Metric(label=label, value="–") for label in labels]
    columns = [
        Grid(
            kind=hue,
            title=column.title,
            about=column.about,
            metrics=scores or blank,
            picture=picture or "",
            alt=_spoken(column.title, plan.request, state),
        )
        for hue, (column, scores, picture) in zip(HUES, zip_longest(plan.columns, metrics, pictures))
    ]
    request, first, last = plan.request, plan.request.seeds[0], plan.request.seeds[-1]
    return Stage(
        state=state,
        asked=asked(request.prompt, seeds=f"seed {first}" if first == last else f"seeds {first} to {last}"),
        sentence=sentence,
        status=status,
        share=share,
        images=request.images,
        seed=request.seed,
        columns=columns,
        attributes=attributes or {},
        notice=notice,
    )


def _spoken(title: str, request: Request, state: str) -> str:
    what = "result" if state == "done" else "preview"
    many = "1 image" if request.images == 1 else f"{request.images} images"
    return f"{title}, {what}: {many} for {request.prompt.strip() or 'no prompt'}"
