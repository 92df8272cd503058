"""A driver in a process of its own: ``python -m tests.faults.driver ROOT FAULTS ADDRESS [TTL]`` runs the toy study.

Prints the outcome as JSON: exit code, state and digest of each step, the modules a cached run must not import.
The driver itself passes fault points too (``driver``: ``before commit``, ``after commit``, ``leased``).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.engine import execute as executor
from pipeline.engine.lease import Lease
from pipeline.engine.plan import decide
from pipeline.engine.progress import Display
from pipeline.engine.store import Store
from pipeline.tracking.track import MlflowTracker, default_tracking_uri
from stages.stage import Execution
from tests.faults import Faults
from tests.faults.toys import toy_plan


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


def main() -> None:
    root, folder, address, *rest = sys.argv[1:]
    faults = Faults(Path(folder))
    faults.driver_is(os.getpid())
    instrument(faults)
    store, plan = Store(root), toy_plan(faults)
    decisions = decide(plan, store)
    tracker = MlflowTracker(default_tracking_uri(root), store) if "track" in rest else None
    ttl = float(next((r for r in rest if r[0].isdigit()), "30"))
    outcome = executor.execute(
        plan,
        decisions,
        store,
        execution=Execution(max_failures=1),
        tracker=tracker,
        display=Display(),
        address=address,
        ttl=ttl,
        poll=0.05,
    )
    digests = {s.id: s.commit.digest for s in outcome.steps.values() if s.commit}
    states = {s.id: s.state for s in outcome.steps.values()}
    heavy = sorted({"ray", "torch", "mlflow", "numpy", "pandas", "pyarrow"} & set(sys.modules))
    print(json.dumps({"exit": outcome.exit_code, "states": states, "digests": digests, "heavy": heavy}))
    sys.exit(outcome.exit_code)


if __name__ == "__main__":
    main()
