"""The plan of a run: a request understood once, and all that follows from it before anything is sampled."""

from __future__ import annotations

from dataclasses import dataclass

from aig.method import schedules
from aig.runs import columns
from aig.runs.columns import Column
from aig.runs.facts import Facts
from aig.runs.request import Request, check, extras


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do. Everything after the request reads it here and works nothing out again."""

    request: Request
    facts: Facts  # of the request's model
    columns: tuple[Column, ...]  # base, tuned, AIG and the added ones; CoDe's last
    cost: int  # model evaluations, one for each image and prompt branch: rows of a batch

    @classmethod
    def of(cls, request: Request, facts: Facts) -> Plan:
        """The plan of a request. ValueError, one sentence with the value and the choices, for what can't be run."""
        check(request, facts)
        added, known = extras(request.columns), facts.tunings[request.tuning]
        for extra in added:
            if extra.kind == "kl" and extra.value not in known:
                choices = ", ".join(f"kl:{kl:g}" for kl in known)
                raise ValueError(f"No model was tuned for the column {extra.name}; choose one of {choices}.")
        schedule = schedules.parse(request.schedule)
        laid_out = columns.columns(
            added,
            schedules.shares(schedule, request.steps, closed=request.closed),
            kl=request.kl,
            scale=request.lora_scale,
            closed=request.closed,
            about=columns.short(schedule.name),
        )
        rows = columns.cost(laid_out, request.images, 1.0 if facts.distilled else request.guidance)
        if rows > facts.max_rows:
            raise ValueError(
                f"{request.images} images of {request.steps} steps in {len(laid_out)} columns need {rows} model evaluations; "
                f"up to {facts.max_rows} are allowed."
            )
        return cls(request=request, facts=facts, columns=laid_out, cost=rows)

    @property
    def aig(self) -> Column:
        """The column of the request's schedule."""
        return next(column for column in self.columns if column.role == "aig")

    @property
    def steps(self) -> int:
        """Of all passes: each CoDe column is sampled in one of its own, after the others."""
        return self.request.steps * (1 + sum(column.candidates > 1 for column in self.columns))

    @property
    def proxy(self) -> str:
        """The reward that the tuned model was tuned on, or the nearest to it that there is."""
        return self.facts.proxy(self.request.tuning)

    @property
    def judges(self) -> tuple[str, ...]:
        """The rewards that the run is scored by."""
        return self.facts.judges(self.request.tuning)
