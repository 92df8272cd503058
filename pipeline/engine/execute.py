"""Carries out a plan: order, leases, commits, retries, cancellation.

The driver's loop. Steps start in the order of the plan as soon as their inputs are committed and a place is free; of
two drivers on the same step one computes and the other waits and takes its artifact. If nothing has to be computed,
neither Ray nor MLflow nor torch is imported.

A driver may die at any moment: whatever is committed stays, whatever is not is computed again by the next run (from
the step's work folder, where the stage keeps one), and no reader ever sees the difference.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cluster import storage
from pipeline.engine.control import Commit
from pipeline.engine.lease import TTL, Holder, Lease, LeaseRequest, Owner, this_process
from pipeline.engine.origin import git_commit, version
from pipeline.engine.plan import Plan, Step, StepDecision
from pipeline.engine.progress import Display
from pipeline.engine.store import Store
from pipeline.engine.tracker import Tracker
from pipeline.engine.worker import Done, Failed, Job, Message
from pipeline.errors import IntegrityError, StudyError
from pipeline.interrupt import terminable
from stages.stage import Execution

if TYPE_CHECKING:
    from pipeline.engine.runners import Result, Runner

State = Literal["done", "reused", "failed", "blocked", "cancelled", "left"]
TICK = 0.25  # seconds between two looks at tasks and messages
_TAKEOVERS = 3  # times a step may lose its lease before it counts as failed


@dataclass
class StepResult:
    """How a step of the plan ended. ``blocked``: an input failed; ``left``: never started."""

    id: str
    state: State
    commit: Commit | None = None
    seconds: float = 0.0
    message: str = ""
    log: str = ""
    exit_code: int = 0


@dataclass
class Outcome:
    """How the run ended. ``exit_code``: 0 all there, 1 a step failed, 4 damaged artifact, 130 interrupted."""

    steps: dict[str, StepResult]
    warnings: list[tuple[str, str]] = field(default_factory=list)  # (step id or "tracking", text)
    interrupted: bool = False
    seconds: float = 0.0

    def ids(self, state: State) -> list[str]:
        """Ids in a state, in the order of the plan."""
        return [step.id for step in self.steps.values() if step.state == state]

    @property
    def exit_code(self) -> int:
        if self.interrupted:
            return 130
        codes = {step.exit_code for step in self.steps.values() if step.state == "failed"}
        if not codes:
            return 0
        return codes.pop() if len(codes) == 1 else 1


def execute(
    plan: Plan,
    decisions: Mapping[str, StepDecision],
    store: Store,
    *,
    execution: Execution,
    force: Iterable[str] = (),
    tracker: Tracker | None = None,
    display: Display | None = None,
    keep_going: bool = False,
    address: str = "local",
    ttl: float = TTL,
    poll: float = 1.0,
) -> Outcome:
    """Do what ``decisions`` say; ids in ``force``, and steps that need them, replace the artifact they have.

    ``address``: ``local`` (embedded Ray), ``auto``, ``host:port``, or ``inline`` (one after the other in this
    process, for tests and ``memory://``). ``ttl``, ``poll``: seconds of the lease and between two looks at another
    driver's. Raises ClusterUnreachable, StudyError (storage, resources) and IntegrityError before any work; what
    goes wrong later is in the Outcome.
    """
    started = time.monotonic()
    display = display or Display(quiet=True)
    run = _Run(
        plan,
        decisions,
        store,
        execution=execution,
        force=set(force),
        tracker=tracker or Tracker(),
        display=display,
        keep_going=keep_going,
        ttl=ttl,
        poll=poll,
    )
    display.begin(len(plan.steps), len(run.outcome.ids("reused")), len(run.pending))
    try:
        if run.pending:
            with terminable():
                run.carry_out(address)
        elif tracker is not None:  # a server that has not seen what is there already
            tracker.begin(plan, run.commits)
            run.outcome.warnings += [("tracking", text) for text in tracker.finish("FINISHED")]
    finally:
        run.outcome.seconds = time.monotonic() - started
        display.end()
    return run.outcome


@dataclass
class _Active:
    """A step that is being computed."""

    step: Step
    lease: Lease
    replace: bool
    relinquished: str = ""  # why the lease was lost


class _Run:
    """The state of one call of ``execute``."""

    def __init__(
        self,
        plan: Plan,
        decisions: Mapping[str, StepDecision],
        store: Store,
        *,
        execution: Execution,
        force: set[str],
        tracker: Tracker,
        display: Display,
        keep_going: bool,
        ttl: float,
        poll: float,
    ) -> None:
        self.plan, self.store, self.execution, self.tracker = plan, store, execution, tracker
        self.display, self.keep_going, self.ttl, self.poll = display, keep_going, ttl, poll
        reused = {step_id: d.commit for step_id, d in decisions.items() if d.action == "reuse" and d.commit}
        self.commits: dict[str, Commit] = dict(reused)
        self.pending = [step for step in plan.steps if decisions[step.id].action == "run"]
        remade = plan.downstream(force)
        self.replace = {step.id for step in self.pending if step.id in remade}
        self.outcome = Outcome({s.id: StepResult(s.id, "left", message=decisions[s.id].reason) for s in plan.steps})
        for step_id, commit in reused.items():
            self.outcome.steps[step_id] = StepResult(step_id, "reused", commit)
        self.active: dict[str, _Active] = {}
        self.requests: dict[str, tuple[LeaseRequest, float]] = {}  # and when to ask again
        self.lost: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.takeovers: dict[str, int] = {}
        self.stopping = False
        self.owner: Owner
        self.runner: Runner
        self.meta: dict[str, Any] = {}

    def carry_out(self, address: str) -> None:
        """Everything from the first check to the last commit."""
        from pipeline.engine import runners

        if self.store.root.startswith("memory://") and address != runners.INLINE:
            raise StudyError(
                f"root = {self.store.root!r}: memory:// lives in one process, Ray's workers cannot reach it "
                "(allowed: a local path, file://, s3:// or another fsspec URL). Fix: choose another with --root"
            )
        self.store.check_writable()
        self.display.note(f"starting Ray ({address})" if address != runners.INLINE else "running in this process")
        with self.display.during("starting Ray"):
            self.runner = runners.start(address, self.execution.max_failures, self.display.note)
        try:
            self.runner.check((s.id, s.stage.needs(s.config, self.execution)) for s in self.pending)
            self.store.record_study(self.plan.record())
            self.owner = this_process()
            self.meta = {"study": self.plan.study, "version": version(), "git_commit": git_commit()}
            self.tracker.begin(self.plan, self.commits)
            try:
                self._loop()
            except KeyboardInterrupt:
                self.outcome.interrupted = True
                self.display.note("interrupted: ending running steps (again to end at once)")
                self._stop()
                self.display.note("interrupted; what is finished is kept, running again goes on from there")
            finally:
                for active in self.active.values():
                    active.lease.release()
        finally:
            self.runner.close()
            status = "KILLED" if self.outcome.interrupted else "FAILED" if self.outcome.exit_code else "FINISHED"
            with self.display.during("writing to MLflow"):
                self.outcome.warnings += [("tracking", text) for text in self.tracker.finish(status)]

    def _loop(self) -> None:
        while (self.pending and not self.stopping) or self.active:
            self._start_ready()
            if not self.active and not self.requests:
                break  # nothing runs and nobody is waited for: what is pending is blocked
            results = self.runner.wait(TICK)
            self._pass_on(self.runner.drain(10.0 if results else 1.0))  # a step's messages come before its end
            for step_id, result in results:
                self._finish(self.active.pop(step_id), result)
            self._mind_leases()
            self.display.tick()
        for step in self.pending:
            self._block(step)

    # Starting

    def _start_ready(self) -> None:
        for step in list(self.pending):
            if len(self.active) >= self.execution.jobs:
                return
            if all(source in self.commits for source in step.inputs.values()) and self._may_start(step):
                self.pending.remove(step)

    def _may_start(self, step: Step) -> bool:
        """Take the step's lease and start it, or its artifact if another driver has made it; False: ask later."""
        fs, folder = self.store.fs, self.store.lease_folder(step.stage.name, step.key)
        request, not_before = self.requests.get(step.id, (LeaseRequest(fs, folder, self.owner, ttl=self.ttl), 0.0))
        if time.monotonic() < not_before:
            return False
        self.requests[step.id] = (request, time.monotonic() + self.poll)
        try:
            if self._adopt(step):
                return True
            lease = request.take()
            if isinstance(lease, Holder):
                self.display.waiting(step.id, str(lease.owner))
                return False
            if self._adopt(step):  # committed between the two looks
                lease.release()
                return True
        except OSError as error:
            if not storage.transient(error):
                raise
            self.display.note(f"{step.id}: storage does not answer, trying again: {error}")
            return False
        del self.requests[step.id]
        lease.start(lambda reason: self.lost.put((step.id, reason)))
        self.active[step.id] = _Active(step, lease, step.id in self.replace)
        self._submit(step, lease)
        return True

    def _submit(self, step: Step, lease: Lease) -> None:
        if step.id in self.replace and not self.takeovers.get(step.id):
            self.store.clear_work(step.stage.name, step.key)  # forced: what is left of earlier tries may be why
        inputs = {name: self.store.artifact(self.commits[source]) for name, source in step.inputs.items()}
        job = Job(step.id, step.stage, step.config, step.key, inputs, self.store, self.execution, lease.number)
        self.runner.submit(job, step.stage.resources(step.config, self.execution))
        self.display.started(step.id)
        self.tracker.step_started(step)

    def _adopt(self, step: Step) -> bool:
        """Take the artifact another driver has committed since the plan was made."""
        if step.id in self.replace:
            return False
        commit = self.store.lookup(step.stage.name, step.key)
        if commit is None:
            return False
        self._settle(step, "reused", commit)
        self.display.adopted(step.id, commit.headline)
        return True

    # Ending

    def _finish(self, active: _Active, result: Result) -> None:
        step = active.step
        if isinstance(result, Done):
            try:
                if self._commit(active, result):
                    return
            except (OSError, IntegrityError) as error:
                result = Failed(f"its result could not be committed: {error}", result.log)
            else:
                active.relinquished = active.relinquished or active.lease.lost or "lost"
        if isinstance(result, Failed) and not active.relinquished:
            active.relinquished = self._overtaken(active)
        active.lease.release()
        if active.relinquished and not self.stopping:
            if self._again(active):
                return
            result = Failed(f"lost its lease {_TAKEOVERS} times, the last time: {active.relinquished}")
        if isinstance(result, Failed):
            self._fail(step, result)
        else:
            self._settle(step, "cancelled")
            self.display.cancelled(step.id)
            self.tracker.step_failed(step.id, "cancelled", "KILLED")

    def _overtaken(self, active: _Active) -> str:
        """Why the lease is lost, "" while it is held. A driver that was frozen may see its step fail, its files removed
        by whoever took over, before its heartbeat sees why."""
        with contextlib.suppress(OSError, IntegrityError):
            active.lease.held()
        return active.lease.lost or ""

    def _commit(self, active: _Active, done: Done) -> bool:
        """Commit if the lease still is ours; False if it is not (the attempt is discarded then)."""
        step, name = active.step, active.step.stage.name
        held = False
        for retry in storage.retrying(self.ttl):
            with retry:
                held = active.lease.held()
        if not held:
            self.store.discard(name, step.key, done.sealed.id)
            return False
        meta = {
            **step.record(),
            **self.meta,
            "deterministic": step.stage.deterministic,
            "seconds": round(done.seconds, 3),
            "host": done.host,
            "hardware": done.hardware,
        }
        before = self.store.lookup(name, step.key) if active.replace else None
        commit = self.store.commit(name, step.key, done.sealed, done.summary, meta, replace=active.replace)
        with contextlib.suppress(OSError):  # rubbish is left to gc; the artifact is there
            self.store.tidy(commit, replaced=before)
        active.lease.release()
        self._settle(step, "done" if commit.attempt == done.sealed.id else "reused", commit, done.seconds, log=done.log)
        self.display.done(step.id, done.seconds, commit.headline)
        self.tracker.step_finished(step, commit, self.store.artifact(commit), done.seconds)
        return True

    def _again(self, active: _Active) -> bool:
        """After a lost lease: wait for whoever has it now, and take that artifact, or compute once more."""
        step = active.step
        self.takeovers[step.id] = self.takeovers.get(step.id, 0) + 1
        self._warn(step.id, f"lost its lease ({active.relinquished})")
        self.tracker.step_failed(step.id, f"lost its lease: {active.relinquished}", "KILLED")
        if self.takeovers[step.id] >= _TAKEOVERS:
            return False
        self.replace.discard(step.id)  # the other driver's artifact is as good as ours would have been
        self.pending.insert(0, step)
        return True

    def _fail(self, step: Step, failed: Failed) -> None:
        message = failed.message
        self.outcome.steps[step.id] = StepResult(
            step.id, "failed", message=message, log=failed.log, exit_code=failed.exit_code
        )
        self.display.failed(step.id, message, failed.log)
        self.tracker.step_failed(step.id, message, "FAILED")
        if not self.keep_going and not self.stopping:
            self._stop()

    def _block(self, step: Step) -> None:
        states = {source: self.outcome.steps[source].state for source in step.inputs.values()}
        broken = [source for source, state in states.items() if state in ("failed", "blocked", "cancelled")]
        if broken:
            self.outcome.steps[step.id] = StepResult(step.id, "blocked", message=f"needs {broken[0]}")

    def _settle(
        self, step: Step, state: State, commit: Commit | None = None, seconds: float = 0.0, log: str = ""
    ) -> None:
        self.requests.pop(step.id, None)
        self.outcome.steps[step.id] = StepResult(step.id, state, commit, seconds, log=log)
        if commit is not None:
            self.commits[step.id] = commit

    def _stop(self) -> None:
        """Cancel what runs: first by an interrupt in each task, after 5 s by ending its process."""
        self.stopping = True
        for force in (False, True):
            for step_id in self.active:
                self.runner.cancel(step_id, force=force)
            end = time.monotonic() + 5
            while self.active and time.monotonic() < end:
                for step_id, result in self.runner.wait(TICK):
                    self._finish(self.active.pop(step_id), result)
                with contextlib.suppress(Exception):
                    self._pass_on(self.runner.drain())
        for active in self.active.values():
            active.lease.release()
            self._settle(active.step, "cancelled")
        self.active.clear()

    # While they run

    def _mind_leases(self) -> None:
        while not self.lost.empty():
            step_id, reason = self.lost.get()
            if step_id in self.active:
                self.active[step_id].relinquished = reason
                self.runner.cancel(step_id)

    def _pass_on(self, messages: list[Message]) -> None:
        for message in messages:
            if message.kind == "progress":
                self.display.progress(message.step, message.done, message.total, message.unit, message.values)
            elif message.kind == "metrics":
                self.tracker.metrics(message.step, message.at, message.values, message.time)
            elif message.kind == "warn":
                self._warn(message.step, message.text)
            else:
                self.display.log(message.step, message.text)

    def _warn(self, step_id: str, text: str) -> None:
        self.outcome.warnings.append((step_id, text))
        self.display.warn(step_id, text)
