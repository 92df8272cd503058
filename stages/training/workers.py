"""What every stage that trains asks for."""

from __future__ import annotations

from typing import ClassVar

from stages.stage import ConfigT, Execution, Resources, Stage


class Training(Stage[ConfigT]):
    """A stage whose work is one training run by ``execution.train_workers``."""

    deterministic: ClassVar[bool] = False  # tokens per second are in the log

    def resources(self, config: ConfigT, execution: Execution) -> Resources:
        """A single worker is the step itself; with several the step only waits for them, they ask for their own."""
        return _all(execution) if execution.train_workers == 1 else Resources(cpus=0.0)

    def needs(self, config: ConfigT, execution: Execution) -> Resources:
        return _all(execution)


def _all(execution: Execution) -> Resources:
    count = execution.train_workers
    return Resources(cpus=count * execution.cpus_per_worker, gpus=count * execution.gpus_per_worker)
