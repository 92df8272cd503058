"""The study file's ``base`` and ``pretrain`` sections, and the configs of their steps."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from model.arms import arm_of, why_not_carried, why_whole
from model.config import MixerConfig, RopeScaling, TrunkConfig
from stages.data.tasks.config import versions
from stages.data.tasks.haystack import Format
from stages.data.tasks.needles import BINDINGS, MOST_RIVALS
from stages.data.tasks.registry import check_worded, task_of
from stages.data.tasks.words import CUES
from stages.stage import Config, Execution, StageError


class OptimSettings(Config):
    """Optimiser, schedule and what guards them; shared by base and pretrain.

    adamw has betas 0.9, 0.95. adafactor (torch's; the paper's optimiser) scales each matrix's update to its own size,
    so its lr is relative. muon orthogonalises the updates of the layers' matrices, scaled to AdamW's size, so that the
    same lr serves; embeddings and vectors go by AdamW. Gates go by AdamW under every optimiser. Linear warm-up; then
    constant, cosine, or wsd: constant, and linear to its least in the last decay_share of the steps.
    """

    lr: float = Field(gt=0, description="peak learning rate of the weights")
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    min_lr_share: float = Field(default=0.1, ge=0, le=1, description="cosine and wsd end at this share of lr")
    weight_decay: float = Field(default=0.1, ge=0, description="on matrices only: not on norms, biases or gates")
    clip: float = Field(default=1.0, gt=0, description="limit of the gradient's global norm")
    dtype: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int = Field(default=100, ge=1, description="steps between resume points")
    optimizer: Literal["adamw", "adafactor", "muon"] = "adamw"
    decay_share: float = Field(default=0.2, gt=0, le=1, description="share of the steps in which wsd decays")
    z_loss: float = Field(
        default=0.0, ge=0, description="weight of log(Z)^2, averaged over tokens, beside the loss: keeps logits small"
    )
    spike_nats: float | None = Field(
        default=None,
        gt=0,
        description="stop where the loss is so much above the median of the 50 steps before (default: never)",
    )

    @model_validator(mode="after")
    def _decay_has_effect(self) -> OptimSettings:
        if self.schedule != "wsd" and self.decay_share != OptimSettings.model_fields["decay_share"].default:
            raise ValueError(
                f"decay_share = {self.decay_share}: has no effect with schedule = {self.schedule!r} (it has with wsd); "
                "fix: remove it"
            )
        return self

    def key_fields(self) -> dict[str, Any]:
        """What came later only where it is used: an option left alone moves no key."""
        fields = super().key_fields()
        for name in ("optimizer", "decay_share", "z_loss", "spike_nats"):
            if getattr(self, name) == OptimSettings.model_fields[name].default and not (
                name == "decay_share" and self.schedule == "wsd"
            ):
                fields.pop(name)
        return fields


class DrillSettings(Config):
    """Rows of word-number pairs in place of a phase's prompts (``stages/data/tasks/drill.py``): from few words to many,
    then cues, then prompts, a model learns to bind."""

    words: Annotated[int, Field(ge=2)] | Literal["cues"] = Field(
        description="different words, of one token each, and as many numbers; cues: the bindings' own, on lines"
    )
    k: tuple[int, ...] = Field(default=(4, 8), min_length=1, description="pairs of a row, in turn")

    @model_validator(mode="after")
    def _check(self) -> DrillSettings:
        most = len(CUES) if self.words == "cues" else self.words
        if any(not 2 <= k <= min(most, MOST_RIVALS) for k in self.k) or len(set(self.k)) < len(self.k):
            raise ValueError(
                f"k = {list(self.k)}: allowed are distinct numbers from 2 to {min(most, MOST_RIVALS)} with words = "
                f"{self.words}"
            )
        return self


class PromptPhase(Config):
    """A stretch of the training steps, and the retrieval prompts in its batches."""

    until: float = Field(gt=0, le=1, description="it ends after this share of the steps")
    share: float = Field(ge=0, le=1, description="of the batch's tokens that are prompts")
    length: int = Field(ge=2, description="tokens of a prompt; a batch's row holds sequence_length / length of them")
    text_length: int | None = Field(
        default=None, ge=2, description="tokens of the pieces that text is read in meanwhile (default: whole sequences)"
    )
    rivals: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="k of the bindings prompts meanwhile (default: retrieval_rivals)"
    )
    drill: DrillSettings | None = Field(default=None, description="pairs of single tokens in place of prompts")

    @model_validator(mode="after")
    def _drill_fits(self) -> PromptPhase:
        if self.drill is None:
            return self
        if self.rivals is not None:
            raise ValueError("rivals: has no effect beside drill, whose rows have their own k (fix: remove it)")
        if self.length < (least := 2 * max(self.drill.k) + 2):
            raise ValueError(
                f"length = {self.length}: a drill with k = {max(self.drill.k)} needs at least {least} tokens, so that "
                "something is asked"
            )
        return self

    def key_fields(self) -> dict[str, Any]:
        """What came later only where it is used."""
        fields = super().key_fields()
        for name in ("rivals", "drill"):
            if getattr(self, name) is None:
                fields.pop(name)
        return fields


class MixtureConfig(Config):
    """What a batch is made of. Its number of tokens is the same at every step."""

    sources: dict[str, float] = Field(
        default={}, description="share of each source by its name (normalised); empty: in proportion to its size"
    )
    order: Literal["shuffled", "documents"] = Field(
        default="shuffled",
        description="sequences at random, or each row of the batch one document after the other, in reading order",
    )
    prompts: tuple[PromptPhase, ...] = Field(
        default=(), description="phases of retrieval prompts, in order; empty: text alone"
    )
    retrieval_format: Format = Field(
        default="published", description="wording of the prompts; compact fits short contexts"
    )
    retrieval_tasks: tuple[str, ...] = Field(
        default=("passkey", "bindings"), min_length=1, description="names of the tasks whose prompts alternate"
    )
    retrieval_rivals: tuple[int, ...] = Field(default=(1, 2, 4), min_length=1, description="k of the bindings prompts")

    @model_validator(mode="after")
    def _check(self) -> MixtureConfig:
        for name, share in self.sources.items():
            if not share > 0:
                raise ValueError(f"sources.{name} = {share}: allowed are numbers > 0 (leave a source out to skip it)")
        given = {f"prompts.{index}.rivals": phase.rivals or () for index, phase in enumerate(self.prompts)}
        for name, ks in {"retrieval_rivals": self.retrieval_rivals, **given}.items():
            if any(not 1 <= k <= MOST_RIVALS for k in ks):
                raise ValueError(f"{name} = {list(ks)}: allowed are 1 to {MOST_RIVALS}")
            if name != "retrieval_rivals" and ks and BINDINGS.name not in self.retrieval_tasks:
                raise ValueError(f"{name} = {list(ks)}: has no effect without bindings among retrieval_tasks")
        for task in self.retrieval_tasks:
            try:
                task_of(task)
            except ValueError as error:
                raise ValueError(f"retrieval_tasks = {list(self.retrieval_tasks)}: {error}") from None
        if self.prompts:  # without any the tasks are not asked for
            check_worded(self.retrieval_format, self.retrieval_tasks, "retrieval_format")
        ends = [phase.until for phase in self.prompts]
        if ends and (ends[-1] != 1 or any(a >= b for a, b in pairwise(ends))):
            raise ValueError(
                f"prompts: until = {ends}: allowed are ascending shares of the steps, the last of them 1 "
                "(fix: give each phase its end, and the last one until: 1)"
            )
        return self

    def key_fields(self) -> dict[str, Any]:
        """With the versions of tasks that are not as they first were."""
        phases = [phase.key_fields() for phase in self.prompts]
        return super().key_fields() | {"prompts": phases} | versions(self.retrieval_tasks)

    def check_rows(self, rows: int, sequence_length: int, text_lengths: bool = True) -> None:
        """Raises ValueError for phases that batches of ``rows`` x ``sequence_length`` tokens cannot hold.
        ``text_lengths``: may phases name some?"""
        for index, phase in enumerate(self.prompts):
            for name in ("length", "text_length"):
                tokens = getattr(phase, name)
                if tokens is not None and sequence_length % tokens:
                    raise ValueError(
                        f"mixture.prompts.{index}.{name} = {tokens}: must divide sequence_length = {sequence_length}, "
                        "so that every batch has as many tokens"
                    )
            if phase.text_length is not None and not text_lengths:
                raise ValueError(
                    f"mixture.prompts.{index}.text_length = {phase.text_length}: curriculum_share sets the length of "
                    "text as well (fix: remove one of them)"
                )
        shares = {phase.share for phase in self.prompts}
        if self.order == "documents" and shares:
            share = min(shares)
            whole = abs(share * rows - round(share * rows)) < 1e-9 and round(share * rows) < rows
            if len(shares) > 1 or not whole:
                near = sorted({f"{n / rows:g}" for n in (int(share * rows), int(share * rows) + 1) if n < rows})
                raise ValueError(
                    f"mixture.prompts: share = {sorted(shares)}: with mixture.order = documents every batch needs the "
                    f"same number of rows with prompts, fewer than {rows} (nearest: {' or '.join(near)} in each phase)"
                )


class BaseSettings(OptimSettings):
    """The shared starting point: trained here on short sequences, or imported from a Llama-family folder.

    ``init: scratch`` needs lr, steps, batch_tokens and sequence_length. ``init: hf`` needs path and revision: for a
    Hub id the commit; for a local folder ``sha256:<digest>`` of its config.json and safetensors files (a wrong one is
    refused with the right one named).

    ``per_seed``: each seed of the study trains a base of its own, and the arms of that seed start from it, so that
    differences between bases are part of the spread between seeds. False (all there is with ``init: hf``): one base for
    all seeds.
    """

    init: Literal["scratch", "hf"] = "scratch"
    per_seed: bool = Field(default=True, description="a base for each of the study's seeds (init hf: false)")
    seed: int = Field(default=0, ge=0, description="of the one base without per_seed")
    lr: float | None = Field(default=None, gt=0, description="peak learning rate")  # type: ignore[assignment]  # init: hf has none
    steps: int | None = Field(default=None, ge=1)
    batch_tokens: int | None = Field(default=None, ge=1, description="global batch in tokens")
    sequence_length: int | None = Field(default=None, ge=2, description="the base's short context, tokens")
    mixture: MixtureConfig = MixtureConfig()
    path: str | None = Field(default=None, description="Hub id or local folder (init: hf)")
    revision: str | None = Field(
        default=None,
        pattern=r"^(sha256:[0-9a-f]{64}|[0-9a-f]{40})$",
        description="commit on the Hub (40 hex digits; a branch can move), or sha256:<digest> of a local folder",
    )

    @model_validator(mode="after")
    def _fields_of_init(self) -> BaseSettings:
        if self.per_seed and self.init == "hf":
            raise ValueError("per_seed = True: with init = 'hf' there is one checkpoint for all seeds; remove it")
        if self.per_seed and self.seed:
            raise ValueError(
                f"seed = {self.seed}: has no effect with per_seed = True, bases have the study's seeds "
                "(fix: remove it, or set per_seed: false)"
            )
        needed = ("lr", "steps", "batch_tokens", "sequence_length") if self.init == "scratch" else ("path", "revision")
        foreign = (
            {"path", "revision"}
            if self.init == "scratch"
            else {*BaseSettings.model_fields} - {"init", "per_seed", *needed}
        )
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing: init = {self.init!r} needs {', '.join(needed)}")
        for name in sorted(foreign):
            if getattr(self, name) != BaseSettings.model_fields[name].default:
                raise ValueError(f"{name} has no effect with init = {self.init!r}; remove it")
        if self.batch_tokens is not None and self.sequence_length and self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens = {self.batch_tokens}: must be a multiple of sequence_length = {self.sequence_length}"
            )
        if self.batch_tokens is not None and self.sequence_length:
            self.mixture.check_rows(self.batch_tokens // self.sequence_length, self.sequence_length)
        return self


def check_workers(sequences: int, workers: int, name: str = "the global batch", together: int = 1) -> None:
    """Raises StageError if the global batch of ``sequences`` cannot be shared out equally; ``name``: what says them;
    ``together``: so many workers share each sequence."""
    if sequences * together % workers:
        several = "" if together == 1 else f" times {together}, the workers that share a sequence,"
        raise StageError(
            "each worker takes the same number of the global batch's sequences",
            field="execution.train_workers",
            value=workers,
            allowed=f"divisors of {name} = {sequences}{several}".rstrip(","),
            fix="change one of them",
        )


def ranks_of_a_sequence(execution: Execution, mixer: MixerConfig) -> int:
    """``execution.sequence_parallel`` for an arm whose sequences ranks can share; 1 for others."""
    return 1 if why_whole(mixer) else execution.sequence_parallel


class BaseConfig(BaseSettings):
    """One base, that of ``seed``, and its trunk; with ``init: hf`` the trunk must be the checkpoint's own."""

    per_seed: bool = False
    trunk: TrunkConfig

    def key_fields(self) -> dict[str, Any]:
        """A digest names a local folder's content, so where it lies is no part of the key; nor is whether there are
        bases of other seeds."""
        fields = super().key_fields()
        fields.pop("per_seed")
        if self.revision is not None and self.revision.startswith("sha256:"):
            fields.pop("path")
        return fields


class PretrainSettings(OptimSettings):
    """The study file's ``pretrain`` section: the same for every arm and seed.

    With ``curriculum_share`` the segment count of text grows as the recurrent memory transformer needs it
    (arXiv:2207.06881): a sequence of 8 segments is read as 8, then 4, then 2 documents, then whole. Prompts have the
    lengths of their own phases; tokens and their order stay the same.

    Loss: mean nll (nats) over target tokens of the text sequences; in a phase with a share r of prompts it is
    (1 - r) x that + r x the mean nll of the prompts' answer tokens, so that a few answer tokens weigh as their share.
    """

    steps: int = Field(ge=1)
    batch_sequences: int = Field(ge=1, description="global batch, whatever the number of workers")
    sequence_length: int = Field(ge=2, description="tokens; that of the tokenize section")
    gate_lr: float = Field(default=0.01, gt=0, description="peak learning rate of the gates beta: they must move by ~4")
    mixture: MixtureConfig = MixtureConfig()
    monitor_every: int = Field(default=25, ge=1, description="steps between readings of gates and memory health")
    horizon: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="the cosine ends after so many times the steps: above 1 training stops before it has decayed, "
        "below 1 it goes on at the end's learning rate",
    )
    curriculum_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the steps in which text grows from one segment to sequences",
    )
    chunk_tokens: int | None = Field(
        default=None,
        ge=1,
        description="read longer rows in pieces of so many tokens, whose activations are made again in the backward "
        "pass (default: in one): memory then does not grow with the row. What xl, compressive and memorizing carry "
        "from piece to piece gets no gradient",
    )
    carry_memory: bool = Field(
        default=False,
        description="with mixture.order = documents: a document's next sequence is read with what the arm holds of the "
        "ones before; gradients end where a sequence begins. Needs arms whose memory is bounded",
    )

    def key_fields(self) -> dict[str, Any]:
        """Pieces only where rows are read in some, the horizon where it is not the end: an option that is not used
        moves no key."""
        fields = super().key_fields()
        if self.chunk_tokens is None:
            fields.pop("chunk_tokens")
        if self.horizon == 1:
            fields.pop("horizon")
        if not self.carry_memory:
            fields.pop("carry_memory")
        return fields

    @model_validator(mode="after")
    def _sequences_follow(self) -> PretrainSettings:
        if not self.carry_memory:
            return self
        if self.mixture.order != "documents":
            raise ValueError(
                f"carry_memory = True: with mixture.order = {self.mixture.order!r} no sequence follows the one before "
                "(fix: mixture.order: documents, or leave carry_memory out)"
            )
        lengths = [phase.text_length or self.sequence_length for phase in self.mixture.prompts]
        if lengths and max(lengths) < self.sequence_length:
            raise ValueError(
                f"carry_memory = True: mixture.prompts: text_length = {lengths}: has no effect where text is never "
                f"read in whole sequences of {self.sequence_length} tokens (fix: no text_length in the last phase)"
            )
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> PretrainSettings:
        self.mixture.check_rows(self.batch_sequences, self.sequence_length, text_lengths=not self.curriculum_share)
        if self.horizon != 1 and self.schedule == "constant":
            raise ValueError(
                f"horizon = {self.horizon:g}: has no effect with schedule = 'constant', which never decays (fix: "
                "remove it)"
            )
        return self


class PretrainConfig(PretrainSettings):
    """One arm, one seed. The seed sets the data order (the same for every arm) and the new parameters' start.

    ``rope_theta`` and ``rope_scaling`` take the place of the base's from the first step on, as recipes for longer
    contexts do (arXiv:2306.15595, arXiv:2309.16039); None: the base's own.
    """

    mixer: MixerConfig
    seed: int = Field(ge=0)
    rope_theta: float | None = Field(default=None, gt=0)
    rope_scaling: RopeScaling | None = None

    def key_fields(self) -> dict[str, Any]:
        """Positions only where they are not the base's."""
        fields = super().key_fields()
        for name in ("rope_theta", "rope_scaling"):
            if getattr(self, name) is None:
                fields.pop(name)
        if self.rope_scaling is not None:
            fields["rope_scaling"] = self.rope_scaling.given()
        return fields

    @model_validator(mode="after")
    def _whole_segments(self) -> PretrainConfig:
        segment = self.mixer.segment_length
        if arm_of(self.mixer.kind).whole_segments and self.sequence_length % segment:
            raise ValueError(
                f"sequence_length = {self.sequence_length}: must be a multiple of mixer.segment_length = {segment}"
            )
        reason = why_not_carried(self.mixer)
        if self.carry_memory and reason:
            raise ValueError(f"carry_memory = True: {reason}; fix: leave out the arm, or carry_memory")
        if self.chunk_tokens is not None and (self.chunk_tokens % segment or self.chunk_tokens >= self.sequence_length):
            raise ValueError(
                f"chunk_tokens = {self.chunk_tokens}: allowed are multiples of mixer.segment_length = {segment} below "
                f"sequence_length = {self.sequence_length}"
            )
        if self.curriculum_share and self.sequence_length < 2 * segment:
            raise ValueError(
                f"curriculum_share = {self.curriculum_share}: has no effect on sequences of "
                f"{self.sequence_length} tokens, the mixer's segments have {segment} (allowed: 0, or longer sequences)"
            )
        return self
