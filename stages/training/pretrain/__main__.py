"""The training stage without Ray and without a study: one process, or as many as torchrun starts.

    python -m stages.training.pretrain --config arm.json --tokens DIR --tokenizer DIR --base DIR --out DIR
    torchrun --nproc-per-node 8 -m stages.training.pretrain ...

``arm.json`` holds the fields of a ``pretrain`` step: those of the study's section, with ``mixer`` and ``seed``. The
folders hold an artifact's files (docs/formats.md). The result is that of the step on as many workers; the work folder
``OUT.work`` holds the resume points, and the same command goes on from them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stages.folder import FolderArtifact
from stages.stage import Execution, StageError
from stages.training.pretrain.config import PretrainConfig
from stages.training.pretrain.notice import Preempted


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0; 2 for a fault that the user can mend, which is printed; 143 where a notice (SIGTERM) to some
    rank stopped it with a resume point."""
    parser = argparse.ArgumentParser(prog="python -m stages.training.pretrain", description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="JSON file of the pretrain step's fields")
    for name in ("tokens", "tokenizer", "base"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"folder of the {name} artifact")
    parser.add_argument("--out", type=Path, required=True, help="folder to be made")
    parser.add_argument(
        "--execution", type=json.loads, default={}, metavar="JSON", help="fields of the study's execution block"
    )
    args = parser.parse_args(arguments)
    ranks = {name: int(os.environ.get(name, default)) for name, default in _ONE_PROCESS.items()}
    try:
        config = PretrainConfig(**json.loads(args.config.read_text()))
        execution = Execution(**args.execution | {"train_workers": ranks["WORLD_SIZE"]})
        folders = {name: FolderArtifact(getattr(args, name)) for name in ("tokens", "tokenizer", "base")}
        _train(config, execution, folders, args.out, ranks)
    except Preempted:
        return 143
    except (StageError, ValidationError, OSError, ValueError, RecursionError) as error:
        if ranks["RANK"] == 0:
            print(error, file=sys.stderr)
        return 2
    return 0


_ONE_PROCESS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
"""What torchrun sets, and what holds without it."""


def _train(
    config: PretrainConfig,
    execution: Execution,
    folders: Mapping[str, FolderArtifact],
    out: Path,
    ranks: Mapping[str, int],
) -> None:
    """Train and put the artifact's files below ``out``. Raises StageError where a fault of the input stops it."""
    if out.exists():
        raise StageError("exists already", field="--out", value=str(out), fix="name another folder, or remove it")
    from stages.training.pretrain import worker
    from stages.training.pretrain.recipe import check_execution, of_pretrain
    from stages.training.pretrain.run import check_tokens

    recipe = of_pretrain(config)
    check_tokens(folders["tokens"], config.sequence_length)
    check_execution(recipe, config.mixer, execution)
    work = out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    job = worker.TrainingJob(
        recipe=recipe,
        tokens=folders["tokens"],
        tokenizer=folders["tokenizer"],
        base=folders["base"],
        work_url=str(work),
        execution=execution,
        mixer=config.mixer,
        rope_theta=config.rope_theta,
        rope_scaling=config.rope_scaling,
    )
    rank, world = ranks["RANK"], ranks["WORLD_SIZE"]

    def show(row: Mapping[str, Any]) -> None:
        if rank == 0:
            numbers = (
                f"{name} {row[name]:.5g}" for name in ("loss", "tokens_per_s", "mfu") if row.get(name) is not None
            )
            print(f"step {row['step']} of {recipe.steps}: {', '.join(numbers)}", file=sys.stderr)

    def warn(message: str) -> None:
        print(message, file=sys.stderr)

    with worker.threads(execution), worker.process_group(execution, world):
        worker.run(job, rank, world, ranks["LOCAL_RANK"], on_row=show, on_warning=warn)
    if rank == 0:
        out.mkdir(parents=True)
        worker.take_export(job.work_url, out)


if __name__ == "__main__":
    sys.exit(main())
