"""A driver in a process of its own: ``python -m tests.faults.driver ROOT FAULTS ADDRESS [OPTION...]``.

Runs the toy study, or with ``study=FILE`` a study file. Options: a number (the lease's seconds), ``track`` (to MLflow;
``track=URI``), ``set=A.B=V`` (an override of the study file), ``until=STEP``, ``clock=SECONDS`` (how far this machine's
clock is ahead). Prints the outcome as JSON: exit code,
state, message and digest of each step, warnings, the modules a cached run must not import. The driver itself passes
fault points too (``driver``: ``before commit``, ``after commit``, ``leased``), and every write below a local ROOT that
a fault is planned for.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.engine import execute as executor
from pipeline.engine.lease import Lease
from pipeline.engine.plan import Plan, Selection, decide
from pipeline.engine.progress import Display
from pipeline.engine.store import Store
from pipeline.tracking.track import MlflowTracker, default_tracking_uri
from stages.stage import Execution
from tests.faults import Faults
from tests.faults.toys import toy_plan
from tests.faults.writes import watch_writes


def instrument(faults: Faults) -> None:
    """Fault points around the driver's own writes."""
    commit, start = Store.commit, Lease.start

    def faulty_commit(self: Store, *args: Any, **options: Any) -> Any:
        faults.reach("driver", "before commit")
        made = commit(self, *args, **options)
        faults.reach("driver", "after commit")
        return made

    def faulty_start(self: Lease, *args: Any) -> None:
        start(self, *args)
        faults.reach("driver", "leased")

    Store.commit, Lease.start = faulty_commit, faulty_start


def planned(options: dict[str, str], overrides: list[str], faults: Faults) -> tuple[Plan, Execution]:
    """The study to run, and how."""
    if "study" not in options:
        return toy_plan(faults), Execution(max_failures=1)
    from pipeline.study.graph import expand
    from pipeline.study.load import load

    loaded = load(Path(options["study"]), overrides)
    return expand(loaded, None), loaded.study.execution


def main() -> None:
    root, folder, address, *rest = sys.argv[1:]
    options = {name: value for name, _, value in (option.partition("=") for option in rest)}
    overrides = [option.partition("=")[2] for option in rest if option.startswith("set=")]
    if "clock" in options:
        true, ahead = time.time, float(options["clock"])
        time.time = lambda: true() + ahead
    faults = Faults(Path(folder))
    faults.driver_is(os.getpid())
    instrument(faults)
    store = Store(root)
    if store.local:
        watch_writes(faults, Path(root))
    plan, execution = planned(options, overrides, faults)
    decisions = decide(plan, store, Selection(until=tuple(filter(None, [options.get("until")]))))
    uri = options.get("track", "")
    tracker = MlflowTracker(uri or default_tracking_uri(root), store) if "track" in options else None
    with contextlib.redirect_stdout(sys.stderr):
        outcome = executor.execute(
            plan,
            decisions,
            store,
            execution=execution,
            tracker=tracker,
            display=Display(),
            address=address,
            ttl=float(next((name for name in options if name[0].isdigit()), "30")),
            poll=0.05,
        )
    steps = outcome.steps.values()
    heavy = sorted({"ray", "torch", "mlflow", "numpy", "pandas", "pyarrow"} & set(sys.modules))
    result = {
        "exit": outcome.exit_code,
        "states": {s.id: s.state for s in steps},
        "digests": {s.id: s.commit.digest for s in steps if s.commit},
        "messages": {s.id: s.message for s in steps if s.state == "failed"},
        "warnings": outcome.warnings,
        "heavy": heavy,
    }
    print(json.dumps(result))
    sys.exit(outcome.exit_code)


if __name__ == "__main__":
    main()
