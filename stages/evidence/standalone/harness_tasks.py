"""The tasks as those of lm-evaluation-harness: a YAML file each, whose documents are made for the model's tokenizer.

A prompt is text there, so that its tokens may differ from ours by a few where a needle meets the text around it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from stages.data.tasks.haystack import Format
from stages.data.tasks.registry import RULER, TASKS, task_of
from stages.evidence.standalone.config import Questions
from stages.stage import StageError

if TYPE_CHECKING:
    from stages.data.tasks.task import Task

PREFIX = "infini_"
MOST = 128  # tokens of an answer, RULER's most
OPTIONS = ("lengths", "samples", "seed", "format", "text")
"""Of ``--metadata``."""

_YAML = """task: {name}
tag: [infini_study{tag}]
custom_dataset: !function infini_study.harness_documents
dataset_kwargs: {{infini_task: {task}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{input}}}}"
doc_to_target: "{{{{outputs}}}}"
target_delimiter: ""
process_results: !function infini_study.harness_results
metric_list:
  - metric: score
    aggregation: mean
    higher_is_better: true
generation_kwargs: {{do_sample: false, max_gen_toks: {most}, until: []}}
metadata: {{version: {version}}}
"""


def write_tasks(folder: Path) -> list[str]:
    """A file for every task there is, plug-ins' too, in ``folder``; their names. All are of the tag ``infini_study``,
    RULER's of ``infini_ruler`` too."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob(f"{PREFIX}*.yaml"):
        file.unlink()
    for task in TASKS.values():
        (folder / f"{PREFIX}{task.name}.yaml").write_text(_yaml(task), encoding="utf-8")
    return [PREFIX + name for name in TASKS]


def _yaml(task: Task) -> str:
    tag = ", infini_ruler" if task in RULER else ""
    return _YAML.format(name=PREFIX + task.name, tag=tag, task=task.name, most=MOST, version=float(task.version))


def documents(
    infini_task: str,
    *,
    checkpoint: str | None = None,
    pretrained: str | None = None,
    tokenizer: str | None = None,
    lengths: Iterable[int] | int = (1024,),
    samples: int = 50,
    seed: int = 0,
    format: Format = "published",
    text: Iterable[str] | str = (),
    **others: Any,
) -> dict[str, Any]:
    """{"test": datasets.Dataset} of input, outputs, task, k, length, item. ``lengths``, ``samples``, ``seed``,
    ``format``, ``text`` (files that needles lie in) come from ``--metadata``, the rest from ``--model_args``. Raises
    StageError where no tokenizer is named, for values that are not allowed, and for a name that is nearly an option's:
    the arguments of any model come here too, so that others cannot be told from mistakes."""
    from datasets import Dataset

    for name, value in others.items():
        if near := difflib.get_close_matches(name, OPTIONS, 1, cutoff=0.85):
            raise StageError("has no effect", field=f"--metadata: {name}", value=value, fix=f"write {near[0]}")
    place = tokenizer or checkpoint or pretrained
    if place is None:
        raise StageError(
            "prompts are made to the length in tokens",
            field="tokenizer",
            value=None,
            fix='name one, by --model_args or --metadata \'{"tokenizer": "DIR"}\'',
        )
    given = {"lengths": (lengths,) if isinstance(lengths, int) else lengths, "samples": samples, "seed": seed}
    try:
        asked = Questions.model_validate({"tasks": (infini_task,), **given, "format": format})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "value_error":
            said = first["msg"].removeprefix("Value error, ")
            raise StageError(said, field="--metadata", value=name, fix="correct it") from error
        raise StageError(first["msg"], field=f"--metadata: {name}", value=first["input"], fix="correct it") from error
    files = (text,) if isinstance(text, str) else text
    if not isinstance(files, list | tuple) or not all(isinstance(file, str) for file in files):
        raise StageError("allowed is a list of files", field="--metadata: text", value=text, fix="correct it")
    rows = made(asked, _folder(place), tuple(files))
    return {"test": Dataset.from_list(rows)}


def made(asked: Questions, tokenizer: Path, text: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of all prompts. Raises StageError as an evaluation does."""
    import numpy as np

    from stages.evidence.standalone.prompts import Prompts
    from stages.evidence.standalone.texts import python_manual, read_texts
    from stages.evidence.standalone.tokenizer import read_json, read_tokenizer

    codec = read_tokenizer(tokenizer, read_json(tokenizer / "config.json"))
    texts = read_texts([Path(one) for one in text]) or python_manual()
    haystack = np.concatenate([np.array(codec.encode(one), np.int32) for _, one in texts])
    begins = len(codec.begin)
    return [
        {
            "input": codec.decode(item.prompt[begins:]),
            "outputs": list(item.answers),
            "task": item.task,
            "k": item.k,
            "length": item.length,
            "item": item.item,
        }
        for block in Prompts(asked, codec, haystack).blocks()
        for item in block
    ]


def results(document: dict[str, Any], said: list[str]) -> dict[str, float]:
    """``score`` (0 to 1) by the task's own rule, and the same by length."""
    task = task_of(document["task"])
    score = task.score(task.read(said[0]), document["outputs"])
    return {"score": score, f"score_{document['length']}": score}


def _folder(place: str) -> Path:
    path = Path(os.path.expanduser(place))
    if path.exists():
        return path
    from stages.evidence.standalone.found import from_hub

    return from_hub(place, None)
