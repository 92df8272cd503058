"""The dry run of the judge: what it would ask and cost."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.human import summaries_of
from pipeline.cli.options import Json, Looked, Root, Set, StudyFile, open_study
from pipeline.cli.render import line, print_json
from pipeline.errors import StudyError


def judge(
    study: StudyFile,
    documents: Annotated[
        int | None, typer.Option("--documents", min=1, help="As if judge.documents were this.")
    ] = None,
    set_: Set = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """What judging a study's summaries would cost: sends nothing. The run itself does the judging.

    The summaries must be made already: infini-study run STUDY --until summarize.
    """
    from pipeline.engine.recorded import RecordedStudy

    opened = open_study(study, set_, root)
    step = next((step for step in opened.plan.steps if step.id == "judge"), None)
    if step is None:
        raise StudyError(f"{study}: has no section judge. Fix: add one (docs/summaries.md)")
    if documents is not None:
        opened = open_study(study, [*(set_ or []), f"judge.documents={documents}"], root)
        step = next(step for step in opened.plan.steps if step.id == "judge")
    looked = Looked(RecordedStudy.of_plan(opened.plan), opened.store, opened.plan)
    inputs = summaries_of(looked)

    from stages.evidence.judge.config import JudgeConfig
    from stages.evidence.judge.reachable import missing as lacking
    from stages.evidence.judge.run import dry
    from stages.evidence.summarize.written import everything
    from stages.stage import StageError

    config = step.config
    assert isinstance(config, JudgeConfig)
    try:
        cost = dry(config, everything(inputs))
    except StageError as error:
        raise StudyError(str(error)) from error
    lack = lacking(config, at_once=False)
    missing = "" if lack is None else str(lack)
    if json:
        print_json("judge", {**cost, "key": missing or None})
        return
    line(f"{cost['requests']:,} questions, {cost['cached']:,} answered already, {cost['to_send']:,} to send")
    line(f"at most {cost['tokens_read']:,} tokens read, {cost['tokens_written_at_most']:,} written (estimated)")
    if cost["money_at_most"] is not None:
        line(f"at most {cost['money_at_most']:.2f} in the currency of the prices")
    elif config.endpoint is not None:
        line("what that costs is not known: the endpoint has no price_input and price_output")
    budget = config.endpoint.budget if config.endpoint else None
    if budget is not None and (budget.tokens or budget.money):
        line(f"budget: {budget.tokens or 'any number of'} tokens, {budget.money or 'any'} money")
    if missing:
        line(f"before the run: {missing}")
