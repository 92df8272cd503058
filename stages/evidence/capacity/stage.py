"""C6, mechanism alone: associations written into the real memory module and read back, for several kinds of keys.

How much a memory of F features holds depends on its keys and on what "holds" means, so both are said in every row:

- ``random`` keys: Gaussian vectors of d_key components, as projections of normed inputs are at the start of training.
- ``orthogonal`` keys: one feature each, so that none disturbs another. There are at most F of them (``elu1`` comes as
  close as float32 tells), and the rows end there.
- ``learned`` keys: trained by gradient through the memory module so that the right value is the nearest one.
- ``learned-exact`` keys: trained so that what is read equals the value (the loss of Schlag et al., 2021, sec. 6.1).

``accuracy`` is argmax recall: the value nearest to what is read is the right one, among all values written. Rank does
not bound it: F features can tell more than F values apart. ``error`` and ``exact`` are about the vector read itself:
mean |read - v|^2 / |v|^2, and the share of associations below ``tolerance``. What is read of n keys is a linear map of
rank at most F of their values, so the expected error of independent values is at least 1 - F / n for any keys and rule
(column ``error_bound``), and exact readout of all ends at F.

Rules: ``linear``; ``delta`` (one write per segment of ``segment_length`` associations, as a model trained with such
segments does); ``delta-token`` (one write per association, the classical delta rule's order). Values are random unit
vectors, drawn afresh in every training step, so keys cannot learn them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from stages.evidence.capacity.config import CapacityConfig
from stages.record import Record
from stages.stage import Artifact, Context, Stage, Summary


class MeasureCapacity(Stage[CapacityConfig]):
    """No inputs."""

    name: ClassVar[str] = "capacity"
    code_version: ClassVar[int] = 3
    inputs = ()

    def run(self, config: CapacityConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """capacity.parquet, forgetting.parquet, overwrite.parquet and reference.parquet."""
        from stages.evidence.capacity.measure import run

        return run(config, output, context)


STAGE = MeasureCapacity()
RECORD = Record(stage=STAGE, config=CapacityConfig, per="study")
