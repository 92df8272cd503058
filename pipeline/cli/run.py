"""Commands that check, plan and run a study."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import (
    MOST_JOBS,
    Arms,
    Force,
    Json,
    Only,
    Root,
    Seed,
    Set,
    Since,
    StudyFile,
    Tracking,
    Until,
    at_most,
    check_tracking,
    open_study,
    tracking_uri,
)
from pipeline.cli.render import ACTION_STYLE, line, note, print_json, table
from pipeline.errors import StudyError
from stages.display.numbers import seconds

if TYPE_CHECKING:
    from pipeline.cli.options import Loaded
    from pipeline.engine.execute import Outcome
    from pipeline.engine.plan import Plan, Selection, StepDecision

Resolved = Annotated[bool, typer.Option("--resolved", help="Print every value and where it came from.")]


def validate(study: StudyFile, resolved: Resolved = False, set_: Set = None, json: Json = False) -> None:
    """Check a study file, its overrides and its external inputs; nothing is run."""
    from pipeline.cli.options import pin_cache
    from pipeline.study.graph import expand
    from pipeline.study.load import leaves, load

    loaded = load(study, set_ or ())
    plan = expand(loaded, pin_cache())
    values: dict[str, Any] = loaded.study.model_dump(mode="json", context={"shown": True})
    rows = [(path, _at(values, path), _origin(loaded.origins, path)) for path in leaves(values)]
    if json:
        body = {"study": loaded.study.name, "steps": len(plan.steps), "study_key": plan.study_key}
        resolved_rows = [{"field": f, "value": v, "origin": o} for f, v, o in rows] if resolved else []
        print_json("validate", body | ({"values": resolved_rows} if resolved else {}))
        return
    if resolved:
        table(["field", "value", "from"], [[field, str(value), origin] for field, value, origin in rows])
    line(f"{study}: valid; {len(plan.steps)} steps, study key {plan.study_key[:12]}")


def _at(value: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def _origin(origins: Any, path: str) -> str:
    while path:
        if path in origins:
            return str(origins[path])
        path = path.rpartition(".")[0]
    return "default"


def _selection(  # the selecting options, as every command spells them
    only: Only, since: Since, until: Until, arm: Arms, seed: Seed, force: Force, study_arms: Any, study_seeds: Any
) -> Selection:
    from pipeline.engine.plan import Selection
    from pipeline.errors import UnknownName

    for name in arm or ():
        if name not in study_arms:
            raise UnknownName("arm", name, study_arms)
    for value in seed or ():
        if value not in study_seeds:
            raise UnknownName("seed", str(value), [str(s) for s in study_seeds])
    return Selection(
        only=tuple(only or ()),
        since=tuple(since or ()),
        until=tuple(until or ()),
        arms=tuple(arm or ()),
        seeds=tuple(seed or ()),
        force=tuple(force or ()),
    )


def plan(
    study: StudyFile,
    set_: Set = None,
    root: Root = None,
    only: Only = None,
    since: Since = None,
    until: Until = None,
    arm: Arms = None,
    seed: Seed = None,
    force: Force = None,
    json: Json = False,
) -> None:
    """What a run would do, step by step, and why. Starts nothing."""
    from pipeline.engine.plan import decide
    from pipeline.study.schedules import trained_arms

    opened = open_study(study, set_, root)
    chosen = opened.loaded.study
    selection = _selection(only, since, until, arm, seed, force, trained_arms(chosen), chosen.seeds)
    decisions = decide(opened.plan, opened.store, selection)
    _print_plan(opened, decisions, json)


def _print_plan(opened: Loaded, decisions: dict[str, StepDecision], json: bool) -> None:
    from pipeline.engine.plan import missing
    from pipeline.study.estimate import estimate, lines
    from stages.data.corpus.check import in_one_task
    from stages.data.corpus.config import IngestConfig

    plan = opened.plan
    shortfalls = _shortfalls(opened)
    counts = Counter(decision.action for decision in decisions.values())
    costs = estimate(opened.loaded.study, plan, decisions, opened.store)
    if json:
        steps = [
            {"step": s.id, "key": s.key, "action": decisions[s.id].action, "reason": decisions[s.id].reason}
            for s in plan.steps
        ]
        body = {"study": plan.study, "study_key": plan.study_key, "counts": counts, "steps": steps}
        print_json(
            "plan", body | {"cost": costs.as_dict(), "missing": missing(plan, decisions), "shortfalls": shortfalls}
        )
        return
    rows = [[s.id, s.key[:12], decisions[s.id].action, decisions[s.id].reason] for s in plan.steps]
    table(["step", "key", "action", "why"], rows, ACTION_STYLE)
    _note_changed_source(plan, decisions)
    for step in plan.steps:
        if isinstance(step.config, IngestConfig):
            for file, size, why in in_one_task(step.config):
                note(f"one task reads all of {file} ({size / 1e6:,.0f} MB): {why}")
    if costs_shown := lines(costs):
        table(["cost", ""], costs_shown)
    for shortfall in shortfalls:
        note(f"warning: {shortfall}")
    for lack in missing(plan, decisions):
        note(f"before the run: {lack}")
    line(f"{plan.study}: " + ", ".join(f"{n} to {action}" for action, n in sorted(counts.items())))


def _shortfalls(opened: Loaded) -> list[str]:
    """Claims that the study is too small for, whatever its models do."""
    from pipeline.study.claims import size_of

    return list(size_of(opened.loaded.study, opened.plan).shortfalls())


def _note_changed_source(plan: Plan, decisions: dict[str, StepDecision]) -> None:
    """One line for all stages whose artifacts are reused although their source is another than when they were made."""
    stages = dict.fromkeys(s.stage.name for s in plan.steps if decisions[s.id].warning)
    if stages:
        whose = "its" if len(stages) == 1 else "their"
        note(
            f"warning: the source of {', '.join(stages)} changed, {whose} code_version did not; artifacts made before "
            "are reused (--force STEP makes them again)"
        )


def run(
    study: StudyFile,
    set_: Set = None,
    root: Root = None,
    only: Only = None,
    since: Since = None,
    until: Until = None,
    arm: Arms = None,
    seed: Seed = None,
    force: Force = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", "-k", help="After a failure go on with what does not need it.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            callback=at_most(MOST_JOBS, "--jobs"),
            help="Steps at the same time (default: execution.jobs).",
        ),
    ] = None,
    address: Annotated[
        str, typer.Option("--address", envvar="INFINI_STUDY_ADDRESS", help="Ray: local, auto or host:port.")
    ] = "local",
    tracking: Tracking = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only errors and the result.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also the steps' own log lines.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="Plain lines even on a terminal.")] = False,
) -> None:
    """Run a study: make what is missing, reuse what is there. Running again is resuming."""
    from pipeline.engine.plan import decide
    from pipeline.study.schedules import trained_arms

    opened = open_study(study, set_, root)
    chosen = opened.loaded.study
    selection = _selection(only, since, until, arm, seed, force, trained_arms(chosen), chosen.seeds)
    decisions = decide(opened.plan, opened.store, selection)
    if dry_run:
        _print_plan(opened, decisions, json)
        return
    blocked = [(step, d.reason) for step, d in decisions.items() if d.action == "blocked"]
    if blocked:
        raise StudyError(f"{blocked[0][0]} {blocked[0][1]}. Fix: select it too, or run without the selection")
    _refuse_missing(opened.plan, decisions, address)
    _note_changed_source(opened.plan, decisions)
    display = _display(quiet, verbose, no_progress)
    for shortfall in _shortfalls(opened) if decisions[opened.plan.steps[-1].id].action == "run" else ():
        note(f"warning: {shortfall}")
    try:
        outcome = _execute(opened, decisions, selection, address, tracking, jobs, keep_going, display)
    except KeyboardInterrupt:  # before the first step or after the last; what comes between is in the outcome
        note("interrupted; what is finished is kept, running again goes on from there")
        raise typer.Exit(130) from None
    _print_outcome(opened, outcome, tracking, json)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def _refuse_missing(plan: Plan, decisions: dict[str, StepDecision], address: str) -> None:
    """Raises StudyError for what the run would come to lack; on a cluster, whose nodes may have it, says so only."""
    from pipeline.engine.plan import missing

    lacks = missing(plan, decisions)
    if lacks and address in ("local", "inline"):
        raise StudyError("\n".join(lacks))
    for lack in lacks:
        note(f"warning: on this machine (the cluster's nodes may differ): {lack}")


def _display(quiet: bool, verbose: bool, no_progress: bool) -> Any:
    from pipeline.engine.progress import Display

    return Display(quiet=quiet, verbose=verbose, live=False if no_progress else None)


def _execute(
    opened: Loaded,
    decisions: dict[str, StepDecision],
    selection: Selection,
    address: str,
    tracking: str | None,
    jobs: int | None,
    keep_going: bool,
    display: Any,
) -> Outcome:
    from pipeline.engine.execute import execute
    from pipeline.engine.plan import matching
    from pipeline.tracking.track import MlflowTracker

    execution = opened.loaded.study.execution
    if jobs is not None:
        execution = execution.model_copy(update={"jobs": jobs})
    anything = any(decision.action == "run" for decision in decisions.values())
    uri = tracking_uri(tracking, opened.store)
    if tracking:
        check_tracking(uri)
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there when a node dies; stdout is for data
        return execute(
            opened.plan,
            decisions,
            opened.store,
            execution=execution,
            force=matching(opened.plan, selection.force),
            tracker=MlflowTracker(uri, opened.store) if anything or _unseen(opened, decisions, uri) else None,
            display=display,
            keep_going=keep_going,
            address=address,
        )


def _unseen(opened: Loaded, decisions: dict[str, StepDecision], uri: str) -> bool:
    """Is the study complete, but unknown to this tracking server? Its report is its own, so that one is asked for."""
    from cluster import storage

    step = opened.plan["report"]
    if decisions[step.id].action != "reuse":
        return False
    made = opened.store.mlflow(step.stage.name, step.key)
    return made is None or made["tracking_uri"] != storage.redacted(uri)


def _print_outcome(opened: Loaded, outcome: Outcome, tracking: str | None, json: bool) -> None:
    counts = {
        "run": len(outcome.ids("done")),
        "reused": len(outcome.ids("reused")),
        "failed": len(outcome.ids("failed")),
        "left": len(outcome.steps) - len(outcome.ids("done") + outcome.ids("reused") + outcome.ids("failed")),
    }
    folder = _publish_report(opened) if outcome.steps["report"].state in ("done", "reused") else None
    if json:
        steps = {s.id: {"state": s.state, "seconds": s.seconds, "message": s.message} for s in outcome.steps.values()}
        body: dict[str, Any] = {"study": opened.plan.study, "exit_code": outcome.exit_code, "seconds": outcome.seconds}
        body |= {"steps": counts, "results": steps, "warnings": outcome.warnings}
        print_json("run", body | {"report": str(folder / "report.html") if folder else None})
        return
    _note_troubles(outcome)
    if folder is not None:
        from pipeline.cli.view import print_verdicts

        line()
        print_verdicts(folder)
        line()
        line(f"report   {folder / 'report.html'}")
        line(f"MLflow   infini-study ui{_ui_options(opened, tracking)}   (or: make ui)")
    if counts["run"] == counts["failed"] == counts["left"] == 0:
        line(f"{opened.plan.study}: nothing to do, all {counts['reused']} steps reused")
    else:
        summary = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
        line(f"{opened.plan.study}: {summary}; {seconds(outcome.seconds)}")


def _note_troubles(outcome: Outcome) -> None:
    """What went wrong, in short: the display showed each fault as it happened, all but those of the tracking."""
    for step, text in outcome.warnings:
        if step == "tracking":
            note(f"warning: {text}")
    warned = Counter(step for step, _ in outcome.warnings if step != "tracking")
    if warned:
        where = ", ".join(step + (f" ({n})" if n > 1 else "") for step, n in warned.items())
        note(f"warnings above: {warned.total()}, of {where}")
    failed = outcome.ids("failed")
    if failed:
        note(f"failed, see above: {', '.join(failed)}")


def _ui_options(opened: Loaded, tracking: str | None) -> str:
    from cluster import storage
    from pipeline.tracking.publish import root_option

    return root_option(opened.store.root) + (f" --tracking-uri {storage.redacted(tracking)}" if tracking else "")


def _publish_report(opened: Loaded) -> Path | None:
    """The study's newest report at a stable place, ``<root>/reports/<study>/``, where the store is local."""
    from pipeline.engine.recorded import RecordedStudy
    from pipeline.tracking.publish import publish

    step = opened.plan["report"]
    commit = opened.store.lookup(step.stage.name, step.key)
    if commit is None:
        return None
    if not opened.store.local:
        return opened.store.artifact(commit).path()
    target = Path(opened.store.root) / "reports" / opened.plan.study
    mark = target / ".key"
    if not mark.is_file() or mark.read_text().split(" ")[0] != commit.attempt:
        shutil.rmtree(target, ignore_errors=True)  # an older report's figures
    publish(RecordedStudy.of_plan(opened.plan), opened.store, step.stage, step.id, target)
    return target.relative_to(Path.cwd()) if target.is_relative_to(Path.cwd()) else target
