"""MLflow: one experiment per study, a run of the study, a child run per computed step.

The driver only appends to a queue; one writer thread imports MLflow (about a second), creates the SQLite file where
there is none (1.5 s) and does all the writing, because SQLite locks under concurrent writers. URI and run id are
always explicit. Tracking that fails is a warning at the end of the run, never a lost study. A server that goes away for
a while gets everything when it is back: every action can be done again from where it broke off.

A child run has: params (the flattened config), dataset inputs whose digest begins the artifact key, the metrics by
training step, the summary's metrics, its tables and figures, and tags (stage, arm, seed, key, keys of the inputs, git
commit). A step that is reused is not logged again: the study's run gets a tag ``reused.<step>`` with the id of the
run that made it, in whichever experiment; an artifact that this server has no run of is logged once, to a run tagged
``adopted``. The description of the study's run links to the pages to read and to the run behind every step, that of a
step's run to its pages and to the runs of its inputs, so that one can click from a verdict back to the corpus.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import queue
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import storage
from pipeline.engine.lease import Owner, this_process
from pipeline.engine.tracker import Tracker
from pipeline.errors import StudyError
from pipeline.tracking.outage import Outage, no_answer
from pipeline.tracking.overview import Made, lineage, overview, run_link
from pipeline.tracking.publish import place
from pipeline.tracking.tables import beginning

if TYPE_CHECKING:
    from pipeline.engine.artifact import StoredArtifact
    from pipeline.engine.control import Commit
    from pipeline.engine.plan import Plan, Step
    from pipeline.engine.store import Store

TABLE_ROWS = 2000  # of each table shown in MLflow; the whole stands in the artifact
_LARGEST_FIGURE = 64 * 2**20  # bytes
_PARAM, _TAG, _BATCH = 6000, 8000, 100  # MLflow's limits: characters of a param and a tag, number in a request
_FAILURES = 3  # in a row, after which the writer gives up
_ABOUT = "Each run is one execution of the study, its children are the steps it computed. Begin at the newest run."
_PACKAGES = ("ray", "torch", "mlflow", "datasets", "pyarrow", "numpy", "tokenizers")


def default_tracking_uri(root: str) -> str:
    """The SQLite file below a local root. Raises StudyError for a remote one: SQLite cannot live in object storage."""
    local = storage.local_path(root)
    if local is None:
        raise StudyError(
            f"--tracking-uri: needed because root = {root!r} is remote (allowed: http(s)://..., sqlite:///...). "
            "Fix: give --tracking-uri or MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{local.absolute()}/mlflow.db"


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of every leaf of a config; lists of plain values are one leaf."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from flatten(item, f"{name}.{index}")
    else:
        text = value if isinstance(value, str) else json.dumps(value)
        yield name, text if len(text) <= _PARAM else text[: _PARAM - 3] + "..."


def allowed(name: str) -> str:
    """The name of a param or tag as MLflow takes it: what it has no place for (the @ of an arm on another schedule)
    becomes a colon."""
    return re.sub(r"[^\w./: -]", ":", name)


def system_info() -> dict[str, str]:
    """What the run ran on, as params of the study's run."""
    import psutil

    info = {
        "system.platform": platform.platform(),
        "system.host": platform.node(),
        "system.cpus": str(os.cpu_count()),
        "system.memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "system.python": platform.python_version(),
    }
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            info[f"version.{package}"] = metadata.version(package)
    return info


class MlflowTracker(Tracker):
    """Writes to an MLflow tracking server or SQLite file, from one thread of its own."""

    def __init__(self, tracking_uri: str, store: Store) -> None:
        self.store, self.tracking_uri = store, tracking_uri
        self.noted_uri = storage.redacted(tracking_uri)  # as the store notes it
        self.problems: list[str] = []
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failures = 0
        self._outage = Outage()
        self._mlflow: Any = None
        self._client: Any = None
        self._experiment = ""
        self._parent = ""
        self._plan: Plan
        self._runs: dict[str, str] = {}  # step id -> run id
        self._made: dict[str, Made] = {}  # step id -> what the study's description says of it
        self._broken: list[str] = []  # ids of steps that failed
        self._seen: dict[str, set[tuple[str, int]]] = {}  # run id -> metrics written, for retries that repeat steps
        self._metrics: dict[str, list[Any]] = {}  # run id -> metrics not yet written
        self._tables: set[tuple[str, str]] = set()  # run id and title of those written; MLflow appends to them

    # The driver's side: append and return

    def begin(self, plan: Plan, reused: Mapping[str, Commit]) -> None:
        self._plan = plan
        owner = this_process()
        commits = dict(reused)
        self._thread = threading.Thread(target=self._write, args=(commits, owner), name="mlflow writer", daemon=True)
        self._thread.start()

    def step_started(self, step: Step) -> None:
        self._queue.put(lambda: self._start_step(step))

    def metrics(self, step: str, at: int, values: Mapping[str, float], when: float) -> None:
        self._queue.put(lambda: self._gather(step, at, values, when))

    def step_finished(self, step: Step, commit: Commit, artifact: StoredArtifact, seconds: float) -> None:
        self._queue.put(lambda: self._finish_step(step, commit, artifact, seconds))

    def step_failed(self, step: str, message: str, status: str) -> None:
        self._queue.put(lambda: self._fail_step(step, message, status))

    def finish(self, status: str) -> list[str]:
        if self._thread is not None:
            self._outage.ending = time.monotonic()
            self._queue.put(lambda: self._finish(status))
            self._queue.put(None)
            self._thread.join(timeout=120)
            if self._thread.is_alive():
                self.problems.append("MLflow did not take everything within 120 s; the artifacts are complete")
        return self.problems

    # The writer's side

    def _write(self, reused: Mapping[str, Commit], owner: Owner) -> None:
        try:
            self._connect()
            self._begin(self._plan, reused, owner)
        except Exception as error:
            self._failed(error)
            self._failures = _FAILURES
            self.problems.append("this run is not tracked; its artifacts are complete")
        ended = False
        while not ended:
            try:
                action = self._queue.get(timeout=1.0)
                ended = action is None
            except queue.Empty:
                action = None
            if self._failures < _FAILURES:
                self._do(action)

    def _do(self, action: Callable[[], None] | None) -> None:
        """``action``, or the metrics that have gathered; again and again while the server does not answer."""
        while True:
            try:
                if action is not None:
                    action()
                if action is None or sum(map(len, self._metrics.values())) >= 1000:
                    self._write_metrics()
            except Exception as error:
                pause = self._outage.goes_on() if no_answer(error) else None
                if pause is not None:
                    time.sleep(pause)
                    continue
                if no_answer(error):
                    self._failures = _FAILURES - 1
                self._failed(error)
                return
            self._failures = 0
            away = self._outage.over()
            if away is not None:
                self.problems.append(f"MLflow at {self.noted_uri} did not answer for {away:.0f} s; nothing is lost")
            return

    def _failed(self, error: Exception) -> None:
        text = storage.redacted(str(error)).strip().splitlines()
        problem = f"MLflow at {self.noted_uri}: {type(error).__name__}: {text[0] if text else ''}"
        if problem not in self.problems:
            self.problems.append(problem)
        self._failures += 1
        if self._failures == _FAILURES:
            self.problems.append("MLflow failed several times in a row; the rest of this run is not tracked")

    def _connect(self) -> None:
        import logging

        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its default keeps trying for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for data
        import mlflow

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # it prints whole tracebacks; _failed says it in a line
        self._mlflow = mlflow
        with _one_at_a_time(self.tracking_uri):
            self._client = mlflow.MlflowClient(tracking_uri=self.tracking_uri)
            self._experiment = self._find_experiment(self._plan.study)

    def _find_experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            place = None
            if self.tracking_uri.startswith("sqlite:"):  # a server has its own place for artifacts
                local = storage.local_path(self.store.root)
                place = f"{(local.absolute().as_uri() if local else self.store.root)}/mlartifacts"
            try:
                tags = {"mlflow.note.content": _ABOUT, "mlflow.experimentKind": "custom_model_development"}
                return str(self._client.create_experiment(name, artifact_location=place, tags=tags))
            except self._mlflow.exceptions.MlflowException:  # another driver was first
                found = self._client.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _begin(self, plan: Plan, reused: Mapping[str, Commit], owner: Owner) -> None:
        """Go on with the run of a driver that died at this very plan, or start a new one."""
        self._parent = (
            self._abandoned(plan.study_key)
            or self._client.create_run(self._experiment, run_name=f"{plan.study} {plan.study_key[:8]}").info.run_id
        )
        self._client.update_run(self._parent, status="RUNNING")
        tags = {"study": plan.study, "study_key": plan.study_key, "driver": json.dumps(asdict(owner)), **_source()}
        self._log(self._parent, system_info(), tags, keep_params=True)
        for step_id, commit in reused.items():
            if step_id in {step.id for step in plan.steps}:
                self._reuse(plan[step_id], commit)
        self._log_datasets(self._parent, [(step.id, step) for step in plan.steps if step.id in reused])

    def _reuse(self, step: Step, commit: Commit) -> None:
        """Link to the run that made the artifact; where this server has none, log the artifact to a run of its own."""
        made = self.store.mlflow(commit.stage, commit.key)
        if made is None or made["tracking_uri"] != self.noted_uri or not self._has(made["run_id"]):
            made = self._made_here(step)
        if made is None:
            self._start_step(step, adopted="true")
            self._finish_step(step, commit, self.store.artifact(commit), float(commit.meta.get("seconds", 0.0)))
            made = self.store.mlflow(commit.stage, commit.key)
        assert made is not None
        self._made[step.id] = _made(commit, made["run_id"], reused=True, experiment=made["experiment_id"])
        self._log(self._parent, {}, {f"reused.{step.id}": made["run_id"]})

    def _made_here(self, step: Step) -> dict[str, str] | None:
        """Experiment and run of an artifact that another server was told of since; None where this one has none."""
        query = f"tags.key = '{step.key}' and attributes.status = 'FINISHED'"
        for run in self._client.search_runs([self._experiment], query, max_results=1):
            return {"experiment_id": self._experiment, "run_id": str(run.info.run_id)}
        return None

    def _has(self, run: str) -> bool:
        """Is the run still there? A database may have been deleted since."""
        try:
            return bool(self._client.get_run(run).info.lifecycle_stage == "active")
        except self._mlflow.exceptions.MlflowException:
            return False

    def _finish(self, status: str) -> None:
        text = overview(self._plan, self._made, self._broken, self._experiment, _TAG)
        self._client.set_tag(self._parent, "mlflow.note.content", text)
        self._client.set_terminated(self._parent, status)

    def _abandoned(self, study_key: str) -> str | None:
        query = f"tags.study_key = '{study_key}' and attributes.status != 'FINISHED'"
        for run in self._client.search_runs([self._experiment], query, max_results=20):
            if run.info.status == "RUNNING" and not Owner(**json.loads(run.data.tags["driver"])).dead():
                continue
            left = f"tags.mlflow.parentRunId = '{run.info.run_id}' and attributes.status = 'RUNNING'"
            for child in self._client.search_runs([self._experiment], left):
                self._client.set_terminated(child.info.run_id, "KILLED")
            return str(run.info.run_id)
        return None

    def _log(self, run: str, params: Mapping[str, str], tags: Mapping[str, str], keep_params: bool = False) -> None:
        from mlflow.entities import Param, RunTag

        if keep_params and self._client.get_run(run).data.params:
            params = {}  # a resumed run: params cannot be changed, and these describe its first driver
        all_params = [Param(allowed(name)[:250], value) for name, value in params.items()]
        all_tags = [RunTag(allowed(name)[:250], str(value)[:_TAG]) for name, value in tags.items()]
        for at in range(0, max(len(all_params), len(all_tags)), _BATCH):
            self._client.log_batch(run, params=all_params[at : at + _BATCH], tags=all_tags[at : at + _BATCH])

    def _start_step(self, step: Step, **marks: str) -> None:
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        tags = {"study": self._plan.study, "step": step.id, "stage": step.stage.name, "key": step.key}
        tags |= {MLFLOW_PARENT_RUN_ID: self._parent, "code_version": str(step.stage.code_version)}
        tags |= {} if step.arm is None else {"arm": step.arm}
        tags |= {} if step.seed is None else {"seed": str(step.seed)}
        tags |= {allowed(f"input.{name}"): key for name, key in step.input_keys.items()} | _source() | marks
        if step.id not in self._runs:
            self._runs[step.id] = self._client.create_run(self._experiment, run_name=step.id, tags=tags).info.run_id
        run = self._runs[step.id]
        self._note(step, run)
        self._log(run, dict(flatten(step.config.model_dump(mode="json"))), {})
        sources = [(name, self._plan[source]) for name, source in step.inputs.items()]
        self._log_datasets(run, sources)

    def _log_datasets(self, run: str, sources: list[tuple[str, Step]]) -> None:
        """Each artifact as a dataset whose digest begins its key, with the name of the input as context."""
        from mlflow.data import meta_dataset
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.entities import DatasetInput, InputTag, LoggedModelInput

        build: Any = meta_dataset.MetaDataset  # its type stubs call it abstract
        datasets, models = [], []
        for name, source in sources:
            origin = CodeDatasetSource({"url": self.store.url(source.stage.name, source.key), "key": source.key})
            dataset = build(origin, name=source.id, digest=source.key[:36])
            tag = InputTag("mlflow.data.context", name)
            datasets.append(DatasetInput(dataset=dataset._to_mlflow_entity(), tags=[tag]))
            made = self.store.mlflow(source.stage.name, source.key) or {}
            if made.get("model_id") and made["tracking_uri"] == self.noted_uri:
                models.append(LoggedModelInput(made["model_id"]))
        if datasets:
            self._client.log_inputs(run, datasets=datasets, models=models or None)

    def _gather(self, step: str, at: int, values: Mapping[str, float], when: float) -> None:
        from mlflow.entities import Metric

        run = self._runs.get(step)
        if run is None:
            return  # a step whose run could not be created; that is reported already
        seen = self._seen.setdefault(run, set())
        for name, value in values.items():
            if (name, at) not in seen:
                seen.add((name, at))
                self._metrics.setdefault(run, []).append(Metric(name, value, int(when * 1000), at))

    def _write_metrics(self) -> None:
        for run, metrics in self._metrics.items():
            while metrics:
                self._client.log_batch(run, metrics=metrics[:1000])
                del metrics[:1000]
        self._metrics.clear()

    def _finish_step(self, step: Step, commit: Commit, artifact: StoredArtifact, seconds: float) -> None:
        from mlflow.entities import Metric

        run = self._runs.get(step.id)
        if run is None:
            return
        self._write_metrics()
        now = int(time.time() * 1000)
        curves = {name for name, _ in self._seen.get(run, ())}  # a summary must not add a point to a curve
        summary = {f"final.{name}" if name in curves else name: value for name, value in commit.metrics.items()}
        numbers = {"seconds": seconds, "artifact_bytes": float(commit.bytes), **summary}
        self._client.log_batch(run, metrics=[Metric(name, value, now, 0) for name, value in numbers.items()])
        tags = {"headline": commit.headline, "digest": commit.digest}
        tags["mlflow.note.content"] = self._lineage(step, commit, run)
        if commit.meta.get("version"):
            tags["version"] = str(commit.meta["version"])
        if commit.meta.get("git_commit"):
            tags |= dict.fromkeys(("git_commit", "mlflow.source.git.commit"), str(commit.meta["git_commit"]))
        for title, name in commit.tables.items():
            tags[f"table.{title}"] = self._log_table(run, title, artifact.path(name))
        self._log(run, {}, tags)
        self._log_pages(run, step, commit, artifact)
        self._log_datasets(run, [("output", step)])
        if any(name.endswith(".safetensors") for name in artifact.manifest):
            self._log_model(run, step)
        self._made[step.id] = _made(commit, run)
        self._client.set_terminated(run, "FINISHED")
        self._forget(step.id, run)

    def _forget(self, step: str, run: str) -> None:
        """The step's run has ended: a later one of the same step is another."""
        self._runs.pop(step, None)
        self._seen.pop(run, None)

    def _log_pages(self, run: str, step: Step, commit: Commit, artifact: StoredArtifact) -> None:
        """Figures and pages, these adapted to MLflow: it shows each in a frame that leads to no other file."""
        with tempfile.TemporaryDirectory(prefix="infini-study-") as scratch:
            folder = Path(scratch)
            for name in commit.figures:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.path(name), folder / name)
            step.stage.publish(folder, replace(place(self._plan, self.store, self._commits(step)), file="", runs={}))
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                if path.stat().st_size <= _LARGEST_FIGURE:
                    within = path.parent.relative_to(folder).as_posix()
                    self._client.log_artifact(run, str(path), None if within == "." else within)

    def _commits(self, step: Step) -> dict[str, Commit]:
        """What the step was made from, by step id."""
        sources = [self._plan[source] for source in step.inputs.values()]
        return {s.id: c for s in sources if (c := self.store.lookup(s.stage.name, s.key)) is not None}

    def _lineage(self, step: Step, commit: Commit, run: str) -> str:
        """The description of the step's run: links to its pages and to the runs behind its inputs."""
        links = {}
        for source in (self._plan[source] for source in step.inputs.values()):
            made = self.store.mlflow(source.stage.name, source.key)
            here = made is not None and made["tracking_uri"] == self.noted_uri
            links[source.id] = run_link(made["experiment_id"], made["run_id"]) if made and here else ""
        return lineage(commit.headline, _pages(commit), links, (self._experiment, run), _TAG)

    def _log_table(self, run: str, title: str, path: Path) -> str:
        """Log the beginning of a Parquet table as one MLflow shows; says how much of it that is."""
        rows, data = beginning(path, TABLE_ROWS)
        if (run, title) not in self._tables:
            self._client.log_table(run, data, f"tables/{re.sub(r'[^A-Za-z0-9._-]+', '_', title)}.json")
            self._tables.add((run, title))
        return f"{rows} rows" if rows <= TABLE_ROWS else f"first {TABLE_ROWS} of {rows} rows; the whole is {path}"

    def _log_model(self, run: str, step: Step) -> None:
        """The trained model as an external model (nothing is copied), so that later runs can name it as input."""
        from mlflow.entities import LoggedModelOutput

        name = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{step.id}-{step.key[:12]}")
        tags = {"mlflow.model.isExternal": "true", "url": self.store.url(step.stage.name, step.key), "key": step.key}
        model = self._client.create_logged_model(self._experiment, name=name, source_run_id=run, tags=tags)
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(run, models=[LoggedModelOutput(model.model_id, step=0)])
        self._note(step, run, model.model_id)

    def _note(self, step: Step, run: str, model_id: str = "") -> None:
        self.store.note_mlflow(
            step.stage.name,
            step.key,
            tracking_uri=self.tracking_uri,
            experiment_id=self._experiment,
            run_id=run,
            model_id=model_id,
        )

    def _fail_step(self, step: str, message: str, status: str) -> None:
        if status == "FAILED" and step not in self._broken:
            self._broken.append(step)
        run = self._runs.get(step)
        if run is not None:
            self._write_metrics()
            self._log(run, {}, {"error": message, "mlflow.note.content": message})
            self._client.set_terminated(run, status)
            self._forget(step, run)


def _made(commit: Commit, run: str, reused: bool = False, experiment: str = "") -> Made:
    return Made(run, commit.headline, _pages(commit), reused, experiment)


def _pages(commit: Commit) -> tuple[str, ...]:
    """Of pages in folders, such as those of evidence, there are too many to name."""
    return tuple(name for name in commit.figures if name.endswith(".html") and "/" not in name)


def _source() -> dict[str, str]:
    """What MLflow shows as "created by" and "source"."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": "infini-study", "mlflow.source.type": "LOCAL"}


@contextlib.contextmanager
def _one_at_a_time(tracking_uri: str) -> Iterator[None]:
    """Creating the SQLite file from several processes at once breaks its migrations; a file lock keeps them apart."""
    if not tracking_uri.startswith("sqlite:///"):
        yield
        return
    import fcntl

    path = Path(tracking_uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
