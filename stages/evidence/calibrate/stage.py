"""The stage ``calibrate``: two published experiments done again with this project's own modules.

An instrument that finds "the memory holds few associations" or "this arm cannot recall" has to show that it finds the
published numbers where there are some:

- Schlag, Irie & Schmidhuber (2021), sec. 6.1: how many associations a linear memory with *learned* keys holds. At
  d_key = 64, ELU + 1 holds 40 and fails 60, DPFP-1 100 / 120, DPFP-2 240 / 260, DPFP-3 340 / 360.
- Arora et al. (2023, Zoology): multi-query associative recall (MQAR), accuracy against width and number of pairs, with
  full attention as the ceiling.

No inputs: it says something of the modules, not of the study's data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from stages.evidence.calibrate.config import CalibrateConfig
from stages.record import Record
from stages.stage import Artifact, Context, Stage, Summary


class Calibrate(Stage[CalibrateConfig]):
    """No inputs."""

    name: ClassVar[str] = "calibrate"
    code_version: ClassVar[int] = 2
    inputs = ()

    def run(self, config: CalibrateConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """schlag.parquet, mqar.parquet (of the parts that are on) and reference.parquet."""
        from stages.evidence.calibrate.run import run

        return run(config, output, context)


STAGE = Calibrate()
RECORD = Record(stage=STAGE, config=CalibrateConfig, per="study")
