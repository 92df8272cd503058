"""The description of a study's run in MLflow: which pages to read, and a link to the run behind every step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.engine.plan import Plan, Step

_VIEW = "workflowType=machine_learning"  # else MLflow shows the menus for language-model applications


@dataclass(frozen=True)
class Made:
    """A committed step: its MLflow run ("" where it was made untracked), its headline and the pages it drew."""

    run_id: str
    headline: str
    pages: tuple[str, ...] = ()
    reused: bool = False
    experiment: str = ""  # the study's own where it is not said


def overview(plan: Plan, made: Mapping[str, Made], failed: Iterable[str], experiment: str, limit: int) -> str:
    """Markdown of at most ``limit`` characters; what does not fit is left out column by column, never cut."""
    text = ""
    for headlines, links in ((True, True), (False, True), (False, False)):
        text = "\n\n".join(_parts(plan, made, list(failed), experiment, headlines, links))
        if len(text) <= limit:
            return text
    return text[: text.rindex("\n", 0, limit)]


def _parts(
    plan: Plan, made: Mapping[str, Made], failed: list[str], experiment: str, headlines: bool, links: bool
) -> list[str]:
    """``headlines``: also of steps that exist per arm and seed. ``links``: also to their runs."""
    reused = sum(one.reused for one in made.values())
    counts = {"computed": len(made) - reused, "reused": reused, "failed": len(failed)}
    counts["not made"] = len(plan.steps) - sum(counts.values())
    parts = [f"{len(plan.steps)} steps: " + ", ".join(f"{n} {name}" for name, n in counts.items() if n) + "."]
    pages = [
        f"{page_link(page, one.experiment or experiment, one.run_id)} of {step.id}"
        for step in reversed(plan.steps)
        if (one := made.get(step.id)) and one.run_id
        for page in one.pages
    ]
    if pages:
        parts.append("**Read:** " + ", ".join(pages))
    rows = ["| step | runs | result |", "|---|---|---|"]
    for steps in _groups(plan):
        present = [step for step in steps if step.id in made]
        name = "/".join(part for part in (steps[0].stage.name, steps[0].arm) if part)
        runs = " ".join(_link(step, made[step.id], experiment, links or step.seed is None) for step in present)
        first = made[present[0].id].headline if present else ", ".join(sorted({s.id for s in steps} & set(failed)))
        shown = headlines or steps[0].seed is None or not present
        result = first if present else (f"failed: {first}" if first else "not made")
        seed = f"seed {present[0].seed}: " if present and present[0].seed is not None else ""
        rows.append(f"| {name} | {runs} | {_cell(seed + result) if shown else ''} |")
    parts.append("\n".join(rows))
    return parts


def _groups(plan: Plan) -> list[list[Step]]:
    """Steps of the same stage and arm, one per seed, in the order of the plan."""
    groups: dict[tuple[str, str | None], list[Step]] = {}
    for step in plan.steps:
        groups.setdefault((step.stage.name, step.arm), []).append(step)
    return list(groups.values())


def _link(step: Step, made: Made, experiment: str, linked: bool) -> str:
    text = ("reused" if made.reused else "run") if step.seed is None else str(step.seed)
    return f"[{text}]({run_link(made.experiment or experiment, made.run_id)})" if made.run_id and linked else text


def page_link(page: str, experiment: str, run: str) -> str:
    """Markdown that opens an artifact of a run in MLflow's own viewer."""
    return f"[{page}]({run_link(experiment, run)}/artifacts/{page}?{_VIEW})"


def lineage(headline: str, pages: Iterable[str], inputs: Mapping[str, str], place: tuple[str, str], limit: int) -> str:
    """Markdown of at most ``limit`` characters under which MLflow shows a step's run: what it found, its pages, and
    what it was made from. ``inputs``: step id -> address of its run ("" for none); ``place``: experiment and run."""
    parts = [headline]
    read = [page_link(page, *place) for page in pages]
    if read:
        parts.append("**Read:** " + ", ".join(read))
    made = [f"[{step}]({address})" if address else step for step, address in inputs.items()]
    text = "\n\n".join([*parts, "**Made from:** " + ", ".join(made)] if made else parts)
    return text if len(text) <= limit else text[: text.rindex(", ", 0, limit - 12)] + ", ..."


def run_link(experiment: str, run: str) -> str:
    """Address of a run within MLflow's own pages."""
    return f"#/experiments/{experiment}/runs/{run}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
