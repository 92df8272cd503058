"""One evaluation over all workers: its parts made wherever there is room, and put together in their order."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cluster import storage
from model.config import ModelConfig
from model.cost import cost
from stages.data.parallel import Hands, running_ray
from stages.data.saved import spread_saved
from stages.data.tasks.prompts import Item
from stages.data.tokens.load import StudyTokenizer
from stages.evidence.evaluate import parts, perplexity
from stages.evidence.evaluate.config import EvaluateConfig
from stages.evidence.evaluate.forward import check_vocabulary, device_type, model_config
from stages.evidence.evaluate.parts import Part, Setting, Tally
from stages.evidence.evaluate.perplexity import ScoredDocument
from stages.evidence.evaluate.told import Desk, ToDesk, Told
from stages.stage import Artifact, Context

LARGE = 2**26  # parameters: a process that goes on to other work does not keep a larger model

TableRows = list[dict[str, Any]]


class Evaluation:
    """Of the model among ``inputs``. Raises StageError if it knows fewer tokens than the tokenizer makes."""

    def __init__(
        self, config: EvaluateConfig, inputs: Mapping[str, Artifact], tokenizer: StudyTokenizer, context: Context
    ) -> None:
        self.config, self.inputs, self.context = config, inputs, context
        self.model = model_config(inputs["model"], config.mixer)
        check_vocabulary(self.model, tokenizer)

    def rows(
        self, documents: Sequence[ScoredDocument], items: Sequence[Item], further: Iterable[Item], further_tokens: int
    ) -> dict[str, TableRows]:
        """Rows of the tables perplexity, retrieval and tasks, in the order of documents and prompts. ``further``, of
        about ``further_tokens`` tokens, is read block by block."""
        execution, ray = self.context.execution, running_ray()
        total = sum(len(d.tokens) for d in documents) + sum(len(i.prompt) for i in items) + further_tokens
        worth_it = ray is not None and (execution.gpus_per_worker > 0 or parts.worth_spreading(self.model, total))
        device = device_type(execution, spread=worth_it)
        size = parts.size_of(self.model, device)
        made = itertools.chain(
            parts.of_documents(documents, self.config, device, size),
            parts.of_items("retrieval", items, self.model, device, size),
            parts.of_blocks("tasks", further, self.model, device, size),
        )
        setting = Setting(self.inputs["model"], self.inputs["tokenizer"], self.config, execution, device)
        found: dict[str, TableRows] = {"perplexity": [], "retrieval": [], "tasks": []}
        places: dict[str, list[int]] = {name: [] for name in found}
        for part, rows in self._made(made, setting, total, worth_it):
            found[part.table] += rows
            places[part.table] += part.places
        for table in ("retrieval", "tasks"):
            by_place = dict(zip(places[table], found[table], strict=True))
            found[table] = [by_place[place] for place in sorted(by_place)]
        found["perplexity"] = perplexity.in_order(found["perplexity"])
        return found

    def _made(
        self, made: Iterable[Part], setting: Setting, total: int, worth_it: bool
    ) -> Iterator[tuple[Part, TableRows]]:
        """Each part and its rows; those of an earlier attempt are taken over."""
        told = Told(self.context, total)
        tally: Tally = told
        waiting, desk = None, None
        if worth_it:
            ray = running_ray()
            desk = ray.remote(num_cpus=0)(Desk).remote()
            tally = ToDesk(desk)

            def waiting() -> None:
                told.told = ray.get(desk.total.remote())
                told.show()

        under_way: deque[Part] = deque()

        def noted() -> Iterator[Part]:
            for part in made:
                under_way.append(part)
                yield part

        execution = setting.execution
        gpus = execution.gpus_per_worker if setting.device == "cuda" else 0.0
        hands = Hands(execution.task_cpus, gpus, stay=stays(self.model, setting.device))
        results = spread_saved(
            parts.make,
            noted(),
            storage.join(self.context.work_url, "parts"),
            setting,
            tally,
            identity=parts.identity,
            worth_it=worth_it,
            hands=hands,
            waiting=waiting,
        )
        try:
            with contextlib.closing(results):  # ends the workers that stay, whatever happens
                for result in results:
                    part = under_way.popleft()
                    told.part(part.tokens, result.resumed)
                    with result.on_disk(parts.ROWS) as file:
                        yield part, parts.read(file)
            told.all()
        finally:
            parts.close()  # where this process made them
            if desk is not None:
                running_ray().kill(desk)


def stays(model: ModelConfig, device: str) -> bool:
    """Does a worker stay for the whole evaluation and then end, model and all? Where that is slow to load or large."""
    return device == "cuda" or cost(model, 1).parameters > LARGE
