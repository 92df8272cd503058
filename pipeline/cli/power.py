"""The command that says, before any run, what a study could see and what it costs: power."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import Json, Root, Set, StudyFile, open_study
from pipeline.cli.render import line, note, print_json, table
from pipeline.errors import StudyError
from stages.display.numbers import seconds

if TYPE_CHECKING:
    from pipeline.cli.options import Loaded
    from stages.verdict.claims.evidence import Evidence
    from stages.verdict.claims.size import Size

CORE = 0.02  # TFLOP/s of a CPU core where none was timed
COLUMNS = ["claim", "", "seeds", "items", "training", "smallest effect seen", "refuted", "spreads from"]


def power(
    study: StudyFile,
    tflops: Annotated[
        float | None,
        typer.Option(
            "--tflops",
            help="TFLOP/s that one device sustains in training, for the hours (default: as trainings in the store were "
            "timed; else 40% of an H100's peak, or on CPUs 0.02 a core).",
        ),
    ] = None,
    set_: Set = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Per claim: seeds, items, training hours and the smallest effect the study would see. Runs nothing.

    The claims' own rules are applied to simulated results. Their spreads come from this study's last run in the store,
    where there is one, else from the study file's claims.pilot.
    """
    from pipeline.study.claims import size_of
    from stages.stage import StageError
    from stages.verdict.claims.powerfurther import every_sensitivity

    if tflops is not None and not (tflops > 0 and math.isfinite(tflops)):
        raise StudyError(f"--tflops = {tflops}: allowed is a number above 0. Fix: give what one device sustains")
    opened = open_study(study, set_, root)
    chosen = opened.loaded.study
    size = size_of(chosen, opened.plan)
    try:
        rows = []
        for row in every_sensitivity(size, _earlier(opened, size)):
            rows.append(row)
            note(f"{row.claim}: simulated")
    except StageError as error:
        raise StudyError(f"{study}: {error}") from error
    tflops, origin = (tflops, "as given") if tflops is not None else _sustained(opened)
    hours = {row.claim: _hours(opened, row.needs, tflops) for row in rows}
    every = _hours(opened, tuple(step.stage.name for step in opened.plan.steps), tflops)
    if json:
        claims: list[dict[str, Any]] = [
            {
                "claim": row.claim,
                "name": row.name,
                "seeds": row.seeds,
                "items": row.items,
                "unit": row.unit,
                "hours": hours[row.claim],
                "smallest": row.smallest if math.isfinite(row.smallest) else None,
                "smallest_text": row.shown,
                "refuted": row.refutes if math.isfinite(row.refutes) else None,
                "refuted_text": row.refutes_shown,
                "pilot": row.pilot,
            }
            for row in rows
        ]
        rate = {"tflops": tflops, "tflops_from": origin, "hours": every}
        print_json("power", {"study": chosen.name, "power": chosen.claims.power, **rate, "claims": claims})
        return
    cells = [
        [
            row.claim,
            row.name,
            str(row.seeds),
            f"{row.items:,} {row.unit}",
            seconds(3600 * hours[row.claim]),
            row.shown,
            row.refutes_shown,
            row.pilot,
        ]
        for row in rows
    ]
    table(COLUMNS, cells, last_below=True)
    line(
        f"at {chosen.claims.power:.0%} power, by simulating the rules; training on one device at {tflops:.3g} TFLOP/s "
        f"({origin}), steps shared by claims counted in each; the whole study {seconds(3600 * every)}"
    )
    line("C6 to C9 rest on limits, counts and formulas, which more seeds or prompts do not decide")


def _sustained(opened: Loaded) -> tuple[float, str]:
    """TFLOP/s of one device in training, and where the number is from, as ``plan`` has it."""
    from pipeline.study.estimate import gpus, training_rate

    study, store = opened.loaded.study, opened.store
    of_plan = [(step.stage.name, step.key) for step in opened.plan.steps if step.stage.name in ("base", "pretrain")]
    rate, origin = training_rate(study, store, () if store.local else store.lookup_many(of_plan).values())
    if rate is None:
        return CORE, f"assumed, a CPU core; {origin}"
    return rate / max(gpus(study), 1.0) / 1e12, origin


def _hours(opened: Loaded, needs: tuple[str, ...], tflops: float) -> float:
    """Device-hours of training in all steps that the stages ``needs`` rest on; trainings on other
    schedules only where ``needs`` names the report or schedules."""
    from pipeline.study.estimate import vocabulary_of
    from stages.training.pretrain.schedule import SEPARATOR
    from stages.verdict.claims.power import training_flops

    study, plan = opened.loaded.study, opened.plan
    vocabulary = vocabulary_of(plan)
    whole = "report" in needs or "schedules" in needs
    chosen = plan.upstream(
        step.id for step in plan.steps if step.stage.name in needs and (whole or SEPARATOR not in (step.arm or ""))
    )
    total = sum(training_flops(plan[step].config, study.trunk, vocabulary) for step in chosen)
    return total / (tflops * 1e12 * 3600)


def _earlier(opened: Loaded, size: Size) -> Evidence | None:
    """The tables of the study's last recorded run, as far as it was finished; None where there was none."""
    from stages.verdict.claims.evidence import Evidence

    study = opened.loaded.study
    record = opened.store.study_record(study.name).get("steps", {})
    if not record:
        return None
    found = opened.store.lookup_many([(step["stage"], step["key"]) for step in record.values()])
    inputs = {name: opened.store.artifact(found[step["key"]]) for name, step in record.items() if step["key"] in found}
    seeds = tuple(sorted({step["seed"] for step in record.values() if step.get("seed") is not None}))
    return Evidence(
        inputs, arms=study.arms, seeds=seeds, trunk=study.trunk, rules=study.claims, control_arms=size.control_arms
    )
