"""A plan: the graph of steps with their keys, and the one decision whether a step runs or is reused.

Everything here is computed before anything runs and without Ray. ``plan`` and ``run`` share ``decide``.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.engine.keys import artifact_key
from pipeline.engine.sources import plugin_digests, source_digest
from pipeline.errors import IntegrityError, StudyError
from pipeline.plugins import load_plugins
from stages.stage import Config, Stage

if TYPE_CHECKING:
    from pipeline.engine.control import Commit
    from pipeline.engine.store import Store


@dataclass(frozen=True)
class Step:
    """One stage with one config: what becomes one artifact. ``inputs`` maps input names to step ids."""

    id: str
    stage: Stage[Any]
    config: Config
    inputs: Mapping[str, str]
    arm: str | None
    seed: int | None
    key: str
    input_keys: Mapping[str, str]

    def record(self) -> dict[str, Any]:
        """What is kept with the artifact, so that a later plan can say what differs."""
        return {
            "step": self.id,
            "stage": self.stage.name,
            "code_version": self.stage.code_version,
            "source_digest": source_digest(type(self.stage).__module__),
            "config": self.config.key_fields(),
            "inputs": dict(self.input_keys),
            "arm": self.arm,
            "seed": self.seed,
            **({"plugins": plugins} if (plugins := _plugins(self)) else {}),
        }


@dataclass(frozen=True)
class Plan:
    """All steps of a study, in an order in which they can run."""

    study: str
    study_key: str
    steps: tuple[Step, ...]

    def __getitem__(self, step_id: str) -> Step:
        return self._by_id[step_id]

    def record(self) -> dict[str, Any]:
        """What the store keeps of the plan: {study, study_key, steps: {id: Step.record() and key}}."""
        steps = {step.id: {**step.record(), "key": step.key} for step in self.steps}
        return {"study": self.study, "study_key": self.study_key, "steps": steps}

    @functools.cached_property
    def _by_id(self) -> dict[str, Step]:
        return {step.id: step for step in self.steps}

    def downstream(self, roots: Iterable[str]) -> set[str]:
        """``roots`` and every step that needs one of them."""
        found = set(roots)
        for step in self.steps:
            if found.intersection(step.inputs.values()):
                found.add(step.id)
        return found

    def upstream(self, roots: Iterable[str]) -> set[str]:
        """``roots`` and every step that one of them needs."""
        found = set(roots)
        for step in reversed(self.steps):
            if step.id in found:
                found.update(step.inputs.values())
        return found


class PlanBuilder:
    """Adds steps in order; each step's inputs must already be there, which also rules out circles."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}

    def add(
        self,
        stage: Stage[Any],
        config: Config,
        inputs: Mapping[str, str],
        *,
        arm: str | None = None,
        seed: int | None = None,
        part: str | None = None,
    ) -> str:
        """Add a step and return its id: the stage's name, then arm and seed where it has them, or the ``part`` of the
        study that it is for."""
        step_id = "/".join([stage.name, *(str(of) for of in (part, arm, seed) if of is not None)])
        if step_id in self.steps:
            raise ValueError(f"step {step_id!r} is planned twice")
        if stage.inputs is not None and set(inputs) != set(stage.inputs):
            raise ValueError(f"step {step_id!r}: given {sorted(inputs)}, the stage declares {sorted(stage.inputs)}")
        input_keys = {name: self.steps[source].key for name, source in inputs.items()}
        key = artifact_key(stage.name, stage.code_version, config.key_fields(), input_keys)
        self.steps[step_id] = Step(step_id, stage, config, dict(inputs), arm, seed, key, input_keys)
        return step_id

    def plan(self, study: str) -> Plan:
        """The finished plan; its key is the key over all steps."""
        digest = hashlib.sha256("".join(f"{s.id}={s.key}\n" for s in self.steps.values()).encode()).hexdigest()
        return Plan(study, digest, tuple(self.steps.values()))


StepAction = Literal["reuse", "run", "skip", "blocked"]


@dataclass(frozen=True)
class StepDecision:
    """What happens to a step and why. ``commit`` is the artifact that is reused."""

    action: StepAction
    reason: str
    commit: Commit | None = None
    warning: str | None = None


@dataclass(frozen=True)
class Selection:
    """Which steps a command names (``--only``, ``--from``, ``--until``, ``--arm``, ``--seed``). Empty: all."""

    only: tuple[str, ...] = ()
    since: tuple[str, ...] = ()
    until: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    force: tuple[str, ...] = field(default=())

    def targets(self, plan: Plan) -> set[str]:
        """Ids of the selected steps."""
        chosen = {step.id for step in plan.steps}
        if self.only:
            chosen = matching(plan, self.only)
        if self.since:
            chosen &= plan.downstream(matching(plan, self.since))
        if self.until:
            chosen &= plan.upstream(matching(plan, self.until))
        outside = {
            s.id
            for s in plan.steps
            if (self.arms and s.arm is not None and s.arm not in self.arms and s.arm.partition("@")[0] not in self.arms)
            or (self.seeds and s.seed is not None and s.seed not in self.seeds)
        }
        chosen = chosen - plan.downstream(outside) if outside else chosen
        if not chosen:
            raise StudyError(
                "--only, --from, --until, --arm and --seed together select no step. "
                "Fix: leave one out; infini-study plan shows what each selects"
            )
        return chosen


def matching(plan: Plan, names: Iterable[str]) -> set[str]:
    """Ids of the steps named by id or by stage (``pretrain``, ``pretrain/local``, ``pretrain/local/0``).

    Raises UnknownName with the closest known names.
    """
    from pipeline.errors import UnknownName

    found: set[str] = set()
    for name in names:
        hits = {step.id for step in plan.steps if step.id == name or step.id.startswith(name.rstrip("/") + "/")}
        if not hits:
            known = sorted({step.id for step in plan.steps} | {step.stage.name for step in plan.steps})
            raise UnknownName("step", name, known)
        found |= hits
    return found


def decide(plan: Plan, store: Store, selection: Selection | None = None) -> dict[str, StepDecision]:
    """Run, reuse, skip or blocked for every step, with the reason; lists each stage once, reads one small file for each
    step that has a folder, and those of a stage's other artifacts where one of its steps is to run.

    A step is ``blocked`` when it is selected but needs one that is neither selected nor made.
    """
    selection = selection or Selection()
    targets = selection.targets(plan)
    forced = matching(plan, selection.force) if selection.force else set()
    present = store.present(step.stage.name for step in plan.steps)
    commits = store.lookup_many([(step.stage.name, step.key) for step in plan.steps], present)
    history = History(store)
    decisions: dict[str, StepDecision] = {}
    for step in plan.steps:
        commit = commits.get(step.key)
        rerun = [source for source in step.inputs.values() if source in forced]
        if step.id in targets and step.id in forced:
            decisions[step.id] = StepDecision("run", "forced")
        elif commit is not None and not (rerun and step.id in targets):
            decisions[step.id] = StepDecision("reuse", f"made {commit.created}", commit, _source_warning(step, commit))
        elif step.id not in targets:
            decisions[step.id] = StepDecision("skip", "not selected")
        else:
            missing = [s for s in step.inputs.values() if decisions[s].action in ("skip", "blocked")]
            if missing:
                decisions[step.id] = StepDecision("blocked", f"needs {missing[0]}, which is neither made nor selected")
            elif rerun:
                forced.add(step.id)
                decisions[step.id] = StepDecision("run", f"{rerun[0]} is made again")
            else:
                begun = step.key in present[step.stage.name] and store.begun(step.stage.name, step.key)
                reason = "started earlier, not finished" if begun else _reason(step, history)
                decisions[step.id] = StepDecision("run", reason)
    return decisions


def missing(plan: Plan, decisions: Mapping[str, StepDecision]) -> list[str]:
    """What steps that are to run cannot do without and this machine does not have, a line each (``Stage.missing``)."""
    found: dict[str, None] = {}
    for step in plan.steps:
        if decisions[step.id].action == "run":
            at_once = all(decisions[source].action == "reuse" for source in step.inputs.values())
            if (lack := step.stage.missing(step.config, at_once=at_once)) is not None:
                found[str(lack)] = None
    return list(found)


class History:
    """What a store has of steps like one that is to run. Reads the artifacts of a stage once, when first asked: all of
    them in a local store; in a remote one, where each costs a request, those that are in the last plan of a study."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._made: dict[str, dict[tuple[Any, Any], list[Commit]]] = {}  # by stage, then arm and seed, the newest first
        self._recorded: list[tuple[str, str]] | None = None

    def nearest(self, name: str, key: str, record: Mapping[str, Any], anyone: bool = False) -> Commit | None:
        """The artifact of stage ``name``, of the same arm and seed, with the fewest differences to the step of this
        key and ``Step.record()``, the newest of these; with ``anyone`` that of another arm or seed where there is none
        of its own."""
        if name not in self._made:
            self._made[name] = {}
            for c in sorted(self._read(name), key=lambda c: c.created, reverse=True):
                if "config" in c.meta:
                    self._made[name].setdefault((c.meta.get("arm"), c.meta.get("seed")), []).append(c)
        made = self._made[name]
        candidates = [c for c in made.get((record["arm"], record["seed"]), ()) if c.key != key]
        if anyone and not candidates:
            others = [c for commits in made.values() for c in commits if c.key != key]
            candidates = sorted(others, key=lambda c: c.created, reverse=True)
        return min(candidates, key=lambda commit: len(differences(commit.meta, record)), default=None)

    def _read(self, name: str) -> Iterable[Commit]:
        if self.store.local:
            return self.store.commits(name)
        if self._recorded is None:
            records = self.store.map(self.store.study_record, self.store.studies())
            self._recorded = [(s["stage"], s["key"]) for record in records for s in record.get("steps", {}).values()]
        return self.store.lookup_many(pair for pair in self._recorded if pair[0] == name).values()

    def changes(self, step: Step, before: Commit) -> list[str]:
        """Lines a person reads: what the stage says has changed outside its config, then field by field."""
        return external_changes(step, before, self.store) + differences(before.meta, step.record())


def _reason(step: Step, history: History) -> str:
    before = history.nearest(step.stage.name, step.key, step.record())
    if before is None:
        return "never made"
    changes = history.changes(step, before)
    return "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")


def external_changes(step: Step, before: Commit, store: Store) -> list[str]:
    """What the stage itself says has changed outside its config; nothing if the old artifact cannot be read."""
    try:
        return step.stage.changes(step.config, store.artifact(before))
    except (OSError, IntegrityError):
        return []


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Field-level differences of two step records, inputs last, as lines a person reads."""
    lines: list[str] = []
    if before["code_version"] != now["code_version"]:
        lines.append(f"code_version: {before['code_version']} -> {now['code_version']}")
    _compare(before["config"], now["config"], "", lines)
    for name in sorted(set(before["inputs"]) | set(now["inputs"])):
        old, new = before["inputs"].get(name), now["inputs"].get(name)
        if old != new:
            lines.append(f"input {name}: {_short(old)} -> {_short(new)}")
    return lines


def _short(key: str | None) -> str:
    return "none" if key is None else key[:12]


def _compare(old: Any, new: Any, where: str, lines: list[str]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(set(old) | set(new)):
            _compare(old.get(name, _NOT_THERE), new.get(name, _NOT_THERE), f"{where}.{name}" if where else name, lines)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            _compare(left, right, f"{where}.{index}", lines)
    elif old != new:
        lines.append(f"{where}: {_said(old)} -> {_said(new)}")


_NOT_THERE = object()
"""Stands for a field that one of two records does not have, which is another thing than one that is None."""


def _said(value: Any) -> str:
    return "not there" if value is _NOT_THERE else repr(value)


def _plugins(step: Step) -> dict[str, str]:
    return plugin_digests(type(step.stage).__module__, load_plugins())


def _source_warning(step: Step, commit: Commit) -> str | None:
    made_with = commit.meta.get("source_digest")
    if made_with not in (None, source_digest(type(step.stage).__module__)):
        return f"the source of stage {step.stage.name!r} changed, its code_version ({step.stage.code_version}) did not"
    before = commit.meta.get("plugins", {})
    changed = [name for name, digest in _plugins(step).items() if before.get(name, digest) != digest]
    if changed:
        return f"the source of plug-in {changed[0]!r} changed since; `--force {step.id}` makes the step anew"
    return None
