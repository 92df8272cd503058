"""Commands that look at what is there: status, explain, ls, show, lineage, verify, logs, gc."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import Json, OfStudy, Root, Set, StudyName, look, open_store
from pipeline.cli.render import ACTION_STYLE, line, note, print_json, table
from pipeline.errors import IntegrityError, StudyError, UnknownName
from stages.display.numbers import seconds, size

if TYPE_CHECKING:
    from pipeline.engine.control import Commit
    from pipeline.engine.store import Store

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="Key of an artifact (its first digits do) or a step id.")
]


def status(study: StudyName, set_: Set = None, root: Root = None, json: Json = False) -> None:
    """How far the study is: steps made and left, by stage."""
    looked = look(study, set_, root)
    commits = looked.study.commits(looked.store)
    made: Counter[str] = Counter()
    total: Counter[str] = Counter()
    spent: defaultdict[str, float] = defaultdict(float)
    for step in looked.study.steps.values():
        total[step.stage] += 1
        commit = commits.get(step.id)
        if commit is not None:
            made[step.stage] += 1
            spent[step.stage] += float(commit.meta.get("seconds", 0.0))
    if json:
        stages = {name: {"made": made[name], "total": total[name], "seconds": spent[name]} for name in total}
        print_json("status", {"study": looked.study.study, "stages": stages})
        return
    table(
        ["stage", "made", "of", "time spent"],
        [[name, str(made[name]), str(total[name]), seconds(spent[name]) if made[name] else ""] for name in total],
    )
    left = sum(total.values()) - sum(made.values())
    line(f"{looked.study.study}: {'complete' if not left else f'{left} of {sum(total.values())} steps left'}")


def explain(
    study: StudyName,
    step: Annotated[str, typer.Argument(metavar="STEP", help="A step id, for example pretrain/infini-delta/0.")],
    set_: Set = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Why a step would run or be reused: the difference to the nearest earlier artifact, field by field."""
    from pipeline.engine.plan import History, StepDecision, decide, differences

    looked = look(study, set_, root)
    plan, store = looked.plan, looked.store
    chosen = looked.study.step(step)
    if plan is not None:
        decision = decide(plan, store)[step]
    else:
        commit = looked.study.commits(store).get(step)
        decision = (
            StepDecision("reuse", f"made {commit.created}") if commit else StepDecision("run", "planned, not made yet")
        )
    history, record = History(store), chosen.record()
    before = history.nearest(chosen.stage, chosen.key, record, anyone=True)
    changes: list[str] = []
    if before is not None:
        changes = history.changes(plan[step], before) if plan is not None else differences(before.meta, record)
    if json:
        print_json(
            "explain",
            {
                "step": step,
                "key": chosen.key,
                "action": decision.action,
                "reason": decision.reason,
                "against": before.key if before else None,
                "differences": changes,
            },
        )
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
    study: Annotated[str | None, typer.Option("--study", metavar="NAME", help="Only those of this study.")] = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """All artifacts of the store."""
    from pipeline.engine.recorded import recorded

    store = open_store(root)
    found = recorded(store, study).commits(store).values() if study is not None else store.commits()
    commits = sorted(found, key=lambda c: c.created)
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
        "key": commit.key,
        "stage": commit.stage,
        "step": commit.step,
        "bytes": commit.bytes,
        "files": commit.files,
        "created": commit.created,
        "headline": commit.headline,
        "metrics": dict(commit.metrics),
    }


def find(store: Store, name: str, study: str | None = None) -> Commit:
    """The artifact with this key, key prefix or step id (the newest), or of this step of a recorded study.

    Raises UnknownName, also where several fit, and StudyError for a step that is not made.
    """
    if study is not None:
        from pipeline.engine.recorded import recorded

        return recorded(store, study).commit(store, name)
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
    study: OfStudy = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """An artifact: what made it, its numbers and files, or the rows of one of its tables."""
    store = open_store(root)
    commit = find(store, key, study)
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
    line(f"  made {commit.created} in {seconds(float(commit.meta.get('seconds', 0)))}; folder {artifact.place}")
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


def lineage(key: KeyArgument, study: OfStudy = None, root: Root = None, json: Json = False) -> None:
    """Everything an artifact was made from, back to the corpus."""
    store = open_store(root)
    by_key = {c.key: c for c in store.commits()}
    first = find(store, key, study)
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
    study: OfStudy = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Check every file of the artifacts against its sha256; exit code 4 if anything is damaged."""
    store = open_store(root)
    if study is not None and key is None:
        raise StudyError(f"--study = {study!r}: says whose step KEY is. Fix: name a step, or leave --study out")
    checked, problems = 0, {}
    old: list[str] = []  # keys of commits without a digest
    for name, whole in [(c.stage, c.key) for c in [find(store, key, study)]] if key is not None else store.keys():
        try:
            commit = store.lookup(name, whole)
        except IntegrityError as error:
            checked, problems[whole] = checked + 1, [str(error)]
            continue
        if commit is not None:
            checked += 1
            old += [] if commit.sha256 else [whole]
            if found := store.verify(commit):
                problems[whole] = found
    if json:
        print_json("verify", {"checked": checked, "problems": problems, "commits_without_digest": old})
        if problems:
            raise typer.Exit(IntegrityError.exit_code)
        return
    for found in problems.values():
        for problem in found:
            line(problem)
    if problems:
        raise IntegrityError(
            f"{len(problems)} of {checked} artifacts are damaged. Fix: run --force STEP makes one again"
        )
    line(f"{checked} artifacts, all files as committed")
    if old:
        line(f"{len(old)} of them were committed before commits had a digest: of these only the files are checked")


def logs(key: KeyArgument, study: OfStudy = None, root: Root = None) -> None:
    """The log of a step, with the traceback if it failed; a step that never finished is named by its id."""
    from pipeline.engine.recorded import recorded

    store = open_store(root)
    places = {} if study else {c.step: (c.stage, c.key) for c in store.commits()}
    for name in [study] if study else store.studies():
        places |= {step.id: (step.stage, step.key) for step in recorded(store, name).steps.values()}
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
    from pipeline.engine.garbage import collect

    store = open_store(root)
    found = collect(store, store.kept(), delete=delete, say=note)
    total = sum(g.bytes for g in found)
    if json:
        entries = [{"path": g.path, "bytes": g.bytes, "reason": g.reason} for g in found]
        print_json("gc", {"deleted": delete, "bytes": total, "garbage": entries})
        return
    table(["size", "reason", "path"], [[size(g.bytes), g.reason, g.path] for g in found], ACTION_STYLE)
    kept = ", ".join(store.studies()) or "none"
    line(f"{size(total)} {'deleted' if delete else 'would go (--delete does it)'}; kept for studies: {kept}")
