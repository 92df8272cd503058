"""A checkpoint's folder opened by whatever reads it: our decoder where it can, else transformers."""

from __future__ import annotations

from pathlib import Path

import torch

from model import checkpoint
from model.config import MixerConfig
from model.llama import BLOCK, read_config, shape
from stages.evidence.standalone.causal import open_causal
from stages.evidence.standalone.config import CheckpointSource
from stages.evidence.standalone.readers import DecoderReader, Reader, context
from stages.stage import Execution, StageError
from stages.training.device import torch_device
from stages.training.pretrain.imported import folder_digest


def open_reader(source: CheckpointSource) -> Reader:
    """The checkpoint in ``source.model``: of our own arms or a family next to Llama with our decoder, else with
    transformers. Raises StageError for what none of them reads."""
    device = device_of(source)
    dtype = getattr(torch, source.dtype) if source.dtype else torch.float32 if device.type == "cpu" else None
    folder, field = source.model, {"field": "MODEL", "value": source.named}
    try:
        fields = read_config(folder)
    except ValueError as error:
        raise StageError(str(error), **field) from error
    if BLOCK not in fields and source.arm is None:
        try:
            shape(fields, folder)
        except ValueError as error:  # another architecture; of one that is known, faults of the weights are faults
            return open_causal(source, device, str(error))
    try:
        if BLOCK in fields and source.arm is None:
            decoder = checkpoint.load(folder, device=device)
            if dtype is not None:
                gates = checkpoint.gates_of(decoder)
                for name, parameter in decoder.named_parameters():
                    parameter.data = parameter.data if name in gates else parameter.data.to(dtype)
        else:
            mixer = source.arm or MixerConfig(kind="full", segment_length=1)
            decoder = checkpoint.graft(folder, mixer, seed=0, device=device, dtype=dtype)
    except ValueError as error:
        fix = "see docs/model.md for what is read as an arm" if BLOCK in fields or source.arm is not None else ""
        raise StageError(str(error), **field, fix=fix) from error
    family = "infini-study" if BLOCK in fields else str(fields.get("model_type"))
    what = f"{family} checkpoint, read as {decoder.config.mixer.kind}"
    return DecoderReader(decoder.eval(), what, context(fields, source.arm))


def device_of(source: CheckpointSource) -> torch.device:
    """Raises StageError for cuda where there is none."""
    return torch_device(Execution(device=source.device), "--device")


def dtype_of(source: CheckpointSource) -> str:
    """In words."""
    on_cpu = device_of(source).type == "cpu"
    return source.dtype or ("float32" if on_cpu else "as stored")


def weights_digest(folder: Path) -> str:
    """``sha256:...`` of config.json and the weights in ``folder``."""
    return folder_digest(folder)
