"""Commands that look at what is there: status, explain, ls, show, lineage, verify, logs, gc."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import Json, Root, Set, StudyFile, open_store, open_study
from pipeline.cli.render import ACTION_STYLE, line, note, print_json, seconds, size, table
from pipeline.errors import IntegrityError, StudyError, UnknownName

if TYPE_CHECKING:
    from pipeline.engine.store import Commit, Store

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="Key of an artifact (its first digits do) or a step id.")
]


def status(study: StudyFile, set_: Set = None, root: Root = None, json: Json = False) -> None:
    """How far the study is: steps made and left, by stage."""
    from pipeline.engine.plan import decide

    opened = open_study(study, set_, root)
    decisions = decide(opened.plan, opened.store)
    made: Counter[str] = Counter()
    total: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for step in opened.plan.steps:
        total[step.stage.name] += 1
        commit = decisions[step.id].commit
        if commit is not None:
            made[step.stage.name] += 1
            spent[step.stage.name] += float(commit.meta.get("seconds", 0.0))  # type: ignore[assignment]
    if json:
        stages = {name: {"made": made[name], "total": total[name], "seconds": spent[name]} for name in total}
        print_json("status", {"study": opened.plan.study, "stages": stages})
        return
    table(
        ["stage", "made", "of", "time spent"],
        [[name, str(made[name]), str(total[name]), seconds(spent[name]) if made[name] else ""] for name in total],
    )
    left = sum(total.values()) - sum(made.values())
    line(f"{opened.plan.study}: {'complete' if not left else f'{left} of {sum(total.values())} steps left'}")


def explain(
    study: StudyFile,
    step: Annotated[str, typer.Argument(metavar="STEP", help="A step id, for example pretrain/infini-delta/0.")],
    set_: Set = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Why a step would run or be reused: the difference to the nearest earlier artifact, field by field."""
    from pipeline.engine.plan import History, decide, matching

    opened = open_study(study, set_, root)
    ids = matching(opened.plan, [step])
    if step not in ids:
        raise UnknownName("step", step, sorted(ids))
    chosen = opened.plan[step]
    decision = decide(opened.plan, opened.store)[step]
    history = History(opened.store)
    before = history.nearest(chosen, anyone=True)
    changes = history.changes(chosen, before) if before is not None else []
    if json:
        print_json(
            "explain",
            {"step": step, "key": chosen.key, "action": decision.action, "reason": decision.reason,
             "against": before.key if before else None, "differences": changes},
        )  # fmt: skip
        return
    line(f"{step}: {decision.action} ({decision.reason})")
    line(f"key {chosen.key}")
    if before is not None:
        whose = "" if before.step == step else f" of {before.step}"
        line(f"nearest earlier artifact{whose} {before.key[:12]}, made {before.created}; differences:")
        for change in changes or ["none in config or inputs"]:
            line(f"  {change}")
    elif decision.action != "reuse":
        line("no earlier artifact of this stage to compare with")


def ls(
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="Only artifacts of this stage.")] = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """All artifacts of the store."""
    commits = sorted(open_store(root).commits(), key=lambda c: c.created)
    if stage is not None:
        known = {c.stage for c in commits}
        if stage not in known:
            raise UnknownName("stage", stage, sorted(known))
        commits = [c for c in commits if c.stage == stage]
    if json:
        print_json("ls", {"artifacts": [_summary(c) for c in commits]})
        return
    rows = [[c.key[:12], c.step, size(c.bytes), c.created, c.headline] for c in commits]
    table(["key", "step", "size", "made (UTC)", "result"], rows)


def _summary(commit: Commit) -> dict[str, object]:
    return {
        "key": commit.key, "stage": commit.stage, "step": commit.step, "bytes": commit.bytes, "files": commit.files,
        "created": commit.created, "headline": commit.headline, "metrics": dict(commit.metrics),
    }  # fmt: skip


def find(store: Store, name: str) -> Commit:
    """The artifact with this key, key prefix or step id (the newest). Raises UnknownName, also where several fit."""
    commits = sorted(store.commits(), key=lambda c: c.created)
    hits = [c for c in commits if c.key.startswith(name)] if len(name) >= 4 else []
    if len(hits) > 1:
        raise UnknownName("key", f"{name} (it begins {len(hits)} keys)", [c.key[:20] for c in hits])
    hits = hits or [c for c in commits if c.step == name]
    if not hits:
        raise UnknownName("artifact", name, [c.step for c in commits] or ["none yet: run a study first"])
    return hits[-1]


def show(
    key: KeyArgument,
    file: Annotated[
        str | None, typer.Option("--table", help="Print the rows of this Parquet file, the fields of this JSON file.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", metavar="FILTER", help="Only rows such as \"task == 'passkey' and length >= 512\"; repeatable."
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many rows.")] = 20,
    root: Root = None,
    json: Json = False,
) -> None:
    """An artifact: what made it, its numbers and files, or the rows of one of its tables."""
    store = open_store(root)
    commit = find(store, key)
    artifact = store.artifact(commit)
    files = {entry.path: entry.size for entry in artifact.manifest.values()}
    if file is not None:
        tables = [name for name in files if name.endswith((".parquet", ".json"))]
        name = next((name for name in (file, f"{file}.parquet", f"{file}.json") if name in tables), None)
        if name is None:
            raise UnknownName("table", file, tables)
        _show_table(artifact.path(name), where or [], limit, json)
        return
    if where:
        raise StudyError(f"--where = {where[0]!r}: selects rows of a table. Fix: name it with --table")
    tracked = store.mlflow(commit.stage, commit.key) or {}
    if json:
        print_json("show", {**_summary(commit), "meta": dict(commit.meta), "file_sizes": files, "mlflow": tracked})
        return
    line(f"{commit.step}  {commit.key}")
    line(f"  {commit.headline}")
    line(f"  made {commit.created} in {seconds(float(commit.meta.get('seconds', 0)))}; folder {artifact.path()}")
    if tracked:
        line(f"  MLflow run {tracked['run_id']}")
    for name, source in commit.meta.get("inputs", {}).items():
        line(f"  input  {name:<12} {source[:12]}")
    for name, value in commit.metrics.items():
        line(f"  metric {name:<32} {value:.6g}")
    for name, bytes_ in files.items():
        line(f"  file   {name:<44} {size(bytes_)}")


def _show_table(path: Path, where: list[str], limit: int, json: bool) -> None:
    from pipeline.cli.where import select

    rows = _rows(path)
    for condition in where:
        rows = select(rows, condition)
    shown = rows.slice(0, limit).to_pylist()
    if json:
        print_json("show", {"columns": rows.column_names, "rows": shown, "total_rows": rows.num_rows})
        return
    cells = [[_cell(row[name]) for name in rows.column_names] for row in shown]
    table(rows.column_names, cells)
    if rows.num_rows > limit:
        note(f"{limit} of {rows.num_rows} rows; --limit shows more")


def _rows(path: Path) -> Any:
    """A Parquet table, or the leaves of a JSON document as rows of ``field`` and ``value``."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.tracking.track import flatten

    if path.suffix == ".parquet":
        return pq.read_table(path)
    leaves = list(flatten(json.loads(path.read_text(encoding="utf-8"))))
    fields, values = ([leaf[i] for leaf in leaves] for i in (0, 1))
    return pa.table({"field": pa.array(fields, pa.string()), "value": pa.array(values, pa.string())})


def _cell(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split())[:80]


def lineage(key: KeyArgument, root: Root = None, json: Json = False) -> None:
    """Everything an artifact was made from, back to the corpus."""
    store = open_store(root)
    by_key = {c.key: c for c in store.commits()}
    first = find(store, key)
    lines: list[dict[str, object]] = []

    def walk(commit: Commit, depth: int, name: str) -> None:
        lines.append(
            {"depth": depth, "input": name, "key": commit.key, "step": commit.step, "headline": commit.headline}
        )
        if any(entry["key"] == commit.key for entry in lines[:-1]):
            return  # its own inputs are listed already
        for input_name, input_key in commit.meta.get("inputs", {}).items():
            if input_key in by_key:
                walk(by_key[input_key], depth + 1, input_name)

    walk(first, 0, "")
    if json:
        print_json("lineage", {"lineage": lines})
        return
    for entry in lines:
        label = f"{entry['input']}: " if entry["input"] and entry["input"] != entry["step"] else ""
        line(f"{'  ' * int(str(entry['depth']))}{label}{entry['step']}  {str(entry['key'])[:12]}  {entry['headline']}")


def verify(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="One artifact; without it all.")] = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Check every file of the artifacts against its sha256; exit code 4 if anything is damaged."""
    store = open_store(root)
    commits = [find(store, key)] if key else list(store.commits())
    problems = {c.key: found for c in commits if (found := store.verify(c))}
    if json:
        print_json("verify", {"checked": len(commits), "problems": problems})
        if problems:
            raise typer.Exit(IntegrityError.exit_code)
        return
    for found in problems.values():
        for problem in found:
            line(problem)
    if problems:
        raise IntegrityError(
            f"{len(problems)} of {len(commits)} artifacts are damaged. Fix: run --force STEP makes one again"
        )
    line(f"{len(commits)} artifacts, all files as committed")


def logs(key: KeyArgument, root: Root = None) -> None:
    """The log of a step, with the traceback if it failed; a step that never finished is named by its id."""
    store = open_store(root)
    places = {c.step: (c.stage, c.key) for c in store.commits()}
    for study in store.studies():
        steps = store.study_record(study).get("steps", {})
        places |= {step: (value["stage"], value["key"]) for step, value in steps.items()}
    by_key = [place for place in places.values() if len(key) >= 4 and place[1].startswith(key)]
    if key not in places and not by_key:
        raise UnknownName("step or key", key, places)
    stage, whole = places[key] if key in places else by_key[0]
    found = store.logs(stage, whole)
    for name, text in found:
        line(f"== attempt {name}")
        line(text.rstrip())
    if not found:
        note(f"{stage} {whole[:12]}: no log")


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Really delete; without it only list.")] = False,
    root: Root = None,
    json: Json = False,
) -> None:
    """What no named study needs any more; lists it, deletes only with --delete."""
    store = open_store(root)
    found = store.gc(store.kept(), delete=delete)
    total = sum(g.bytes for g in found)
    if json:
        entries = [{"path": g.path, "bytes": g.bytes, "reason": g.reason} for g in found]
        print_json("gc", {"deleted": delete, "bytes": total, "garbage": entries})
        return
    table(["size", "reason", "path"], [[size(g.bytes), g.reason, g.path] for g in found], ACTION_STYLE)
    kept = ", ".join(store.studies()) or "none"
    line(f"{size(total)} {'deleted' if delete else 'would go (--delete does it)'}; kept for studies: {kept}")
