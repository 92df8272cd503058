"""Recorded studies from Python: steps, tables as pandas, trained models, verdicts, figures.

    from pipeline.api import Study

    study = Study("quickstart")                                 # by name, as ``infini-study run`` recorded it
    study["pretrain/infini-delta/0"].table("train_log")         # a pandas DataFrame
    study["pretrain/infini-delta/0"].model()                    # a model.decoder.Decoder

Only reads. Importing this module imports neither torch nor Ray, pandas or MLflow; what a call needs it imports.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import look
from pipeline.engine.artifact import StoredArtifact
from pipeline.engine.control import Commit
from pipeline.engine.recorded import RecordedStep
from pipeline.errors import StudyError, UnknownName

if TYPE_CHECKING:
    import pandas as pd

    from model.decoder import Decoder

__all__ = ["Figure", "StepArtifact", "Study"]

_MODEL = "model/config.json"


class Study:
    """A study whose artifacts are in a store.

    ``study``: the name of a study that was run with the store, or the path of a study file; only a file takes
    ``overrides`` ("pretrain.steps=200"). ``root``: folder or fsspec URL of the store (default: ``INFINI_STUDY_ROOT``
    in the environment, else ``runs/store`` below the working directory).

    Raises StudyError for a name that is not recorded (with the closest that are), a faulty file, and a store that
    cannot be read.
    """

    def __init__(self, study: str | Path, root: str | Path | None = None, overrides: tuple[str, ...] = ()) -> None:
        where = str(root) if root is not None else os.environ.get("INFINI_STUDY_ROOT")
        looked = look(Path(study), list(overrides), where)
        self._study, self._store = looked.study, looked.store

    def __repr__(self) -> str:
        made = sum(self.steps.values())
        return f"Study({self.name!r}, root={self.root!r}): {made} of {len(self.steps)} steps made"

    @property
    def name(self) -> str:
        """The study's name."""
        return self._study.study

    @property
    def root(self) -> str:
        """Where its artifacts are."""
        return self._store.root

    @property
    def steps(self) -> dict[str, bool]:
        """Every step id, in an order in which they can run, with whether its artifact is made: looked up each time."""
        made = self._study.commits(self._store)
        return {step: step in made for step in self._study.steps}

    def __getitem__(self, step_id: str) -> StepArtifact:
        """The artifact of a step. Raises UnknownName (with the closest step ids) and StudyError (not made yet)."""
        commit = self._study.commit(self._store, step_id)
        by_key = {step.key: step.id for step in self._study.steps.values()}
        return StepArtifact(self._study.step(step_id), commit, self._store.artifact(commit), by_key)

    def verdicts(self) -> pd.DataFrame:
        """One row per claim: ``claim``, ``verdict``, ``estimate``, ``low``, ``high``, ``n``, ``unit``, ``summary`` and
        more (docs/formats.md, report). Raises StudyError without a report."""
        return self["report"].table("verdicts")

    def numbers(self) -> pd.DataFrame:
        """Every number of the report, one row each, with interval and the rows it came from."""
        return self["report"].table("numbers")

    def figure(self, name: str) -> Figure:
        """A figure of the report: its drawing, and the values in it to draw it anew.

        Names are those of the files in ``figures/``; ``retrieval_lengths`` finds ``retrieval-lengths``. Raises
        UnknownName.
        """
        report = self["report"]
        known = [PurePosixPath(f).stem for f in report.files if f.startswith("figures/") and f.endswith(".csv")]
        wanted = name.replace("_", "-")
        if wanted not in known:
            raise UnknownName("figure", name, known)
        return Figure(wanted, report.path(f"figures/{wanted}.svg"), report.path(f"figures/{wanted}.csv"))


class StepArtifact:
    """A committed artifact of a step."""

    def __init__(self, step: RecordedStep, commit: Commit, artifact: StoredArtifact, by_key: Mapping[str, str]) -> None:
        self._step, self._commit, self._artifact, self._by_key = step, commit, artifact, by_key

    def __repr__(self) -> str:
        return f"{self.step} {self.key[:12]}: {self.headline}"

    @property
    def step(self) -> str:
        """Id of the step in this study."""
        return self._step.id

    @property
    def key(self) -> str:
        """64 hex digits: the identity of the artifact."""
        return self._commit.key

    @property
    def headline(self) -> str:
        """What the stage said of it in one line."""
        return self._commit.headline

    @property
    def summary(self) -> dict[str, float]:
        """The numbers the stage gave, by name."""
        return dict(self._commit.metrics)

    @property
    def config(self) -> dict[str, Any]:
        """The config it was made with, as far as it counts for the key."""
        return dict(self._step.config)

    @property
    def inputs(self) -> dict[str, str]:
        """Input names and the step ids that were read under them."""
        return {name: self._by_key.get(key, key) for name, key in self._step.inputs.items()}

    @cached_property
    def files(self) -> list[str]:
        """Every file of the artifact, relative to it."""
        return list(self._artifact.manifest)

    @property
    def tables(self) -> list[str]:
        """Names for ``table``: Parquet files without their suffix, and folders of Parquet files."""
        found = [PurePosixPath(file) for file in self.files if file.endswith(".parquet")]
        return sorted({str(f.parent) if f.parent.name else f.stem for f in found})

    def table(self, name: str) -> pd.DataFrame:
        """The rows of a table of ``tables``, by that name or its file's. Raises UnknownName."""
        import pandas as pd

        wanted = name.removesuffix(".parquet")
        if wanted not in self.tables:
            raise UnknownName(f"table of {self.step}", name, self.tables)
        return pd.read_parquet(self.path(f"{wanted}.parquet" if f"{wanted}.parquet" in self.files else wanted))

    def path(self, name: str = "") -> Path:
        """Local path of a file or folder of it (of the whole for ""), fetched and checked if the store is remote.

        Raises UnknownName, and IntegrityError for a file that is not as it was committed.
        """
        if name and not any(file == name or file.startswith(name.rstrip("/") + "/") for file in self.files):
            raise UnknownName(f"file of {self.step}", name, self.files)
        return self._artifact.path(name.rstrip("/"))

    def model(self) -> Decoder:
        """The trained model, for evaluation (``eval()``), on the CPU, in the dtype it was saved in.

        Raises StudyError for a step that holds none.
        """
        if _MODEL not in self.files:
            raise StudyError(
                f"step = {self.step!r}: holds no model (allowed: steps of base, pretrain and control-base). "
                "Fix: name one, such as pretrain/ARM/SEED"
            )
        from model.checkpoint import load

        return load(self.path("model")).eval()


class Figure:
    """A figure of a report. In a notebook it shows itself. ``svg``: its file; ``data``: the plotted values."""

    def __init__(self, name: str, svg: Path, data: Path) -> None:
        self.name, self.svg, self._data = name, svg, data

    def __repr__(self) -> str:
        return f"Figure({self.name!r}): {self.svg}"

    def _repr_svg_(self) -> str:
        """What Jupyter shows."""
        return self.svg.read_text(encoding="utf-8")

    @property
    def data(self) -> pd.DataFrame:
        """One row a point."""
        import pandas as pd

        return pd.read_csv(self._data)
