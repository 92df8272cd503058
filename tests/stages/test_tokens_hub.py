"""Tokenizers of the Hugging Face Hub: fetched at a pinned commit over HTTP, then taken from the cache, offline."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from stages.data.tokens.config import TokenizerConfig
from stages.data.tokens.stage import TOKENIZER
from tests.stages.test_tokens import corpus
from tests.support import LocalContext

COMMIT = "1234567890abcdef1234567890abcdef12345678"


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's HTTP interface that a download uses: /<repository>/resolve/<commit>/<file>."""

    def __init__(self, *arguments: object, content: bytes) -> None:
        self.content = content
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        problem = {
            f"/some/tokens/resolve/{COMMIT}/tokenizer.json": "",
            f"/some/slow/resolve/{COMMIT}/tokenizer.json": "EntryNotFound",
            f"/some/tokens/resolve/{'0' * 40}/tokenizer.json": "RevisionNotFound",
        }.get(self.path, "RepoNotFound")
        self.send_response(404 if problem else 200)
        if problem:
            self.send_header("X-Error-Code", problem)
        body = b"" if problem else self.content
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer.json."""
    folder = tmp_path_factory.mktemp("given")
    documents = corpus(folder / "corpus", {"a": ("train", 3000), "b": ("test", 100)})
    (folder / "made").mkdir()
    TOKENIZER.run(
        TokenizerConfig(kind="bpe", vocab_size=300),
        {"documents": documents},
        folder / "made",
        LocalContext(str(folder)),
    )
    return folder / "made"


@pytest.fixture(scope="module")
def endpoint(given: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, content=(given / "tokenizer.json").read_bytes()))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


CODE = """
import json, sys
from pathlib import Path
from stages.stage import StageError
from stages.data.tokens.pin import pin_tokenizer, vocabulary_size
from stages.data.tokens.config import TokenizerConfig
from stages.data.tokens.stage import TOKENIZER
from tests.support import LocalContext
said = []
for out, fields in enumerate(json.loads(sys.argv[1])):
    try:
        config = pin_tokenizer(TokenizerConfig(kind="hub", **fields), Path())
        said.append(["planned", vocabulary_size(config)])
        folder = Path(sys.argv[2]) / str(out)
        folder.mkdir(parents=True)
        said.append(["made", TOKENIZER.run(config, {"documents": None}, folder, LocalContext("")).headline])
    except StageError as error:
        said.append(["refused", str(error)])
print(json.dumps(said))
"""


def ask(tmp_path: Path, name: str, fields: list[dict[str, str]], **environment: str) -> list[tuple[str, object]]:
    """In a process of its own: the Hub's library reads its environment once."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(fields), str(tmp_path / name)],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return [tuple(line) for line in json.loads(done.stdout.splitlines()[-1])]


def test_fetched_at_plan_time_and_then_used_without_a_network(tmp_path: Path, given: Path, endpoint: str) -> None:
    good = {"path": "some/tokens", "revision": COMMIT, "eos_token": "<eos>", "pad_token": "<pad>"}
    wrong = [
        {**good, "path": "some/nothing"},
        {**good, "path": "some/slow"},
        {**good, "revision": "0" * 40},
        {**good, "path": "no name"},
        {**good, "eos_token": "</s>"},
    ]
    fresh = {**good, "path": "some/other"}
    offline = ask(tmp_path, "a", [fresh], HF_HUB_OFFLINE="1")
    assert offline[0] == ("planned", None), "a plan needs no network"
    assert offline[1][0] == "refused" and "not in the local cache" in str(offline[1][1])
    online = ask(tmp_path, "b", [good, *wrong], HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert online[:2] == [("planned", 300), ("made", "hub tokenizer, 300 tokens")]
    assert [kind for kind, _ in online[2:]] == ["refused"] * 5
    for said, words in zip(
        (text for _, text in online[2:]),
        (
            "no such repository",
            "has no tokenizer.json at this commit",
            f"no commit {'0' * 40}",
            "owner/name",
            "'</s>'",
        ),
        strict=True,
    ):
        assert words in str(said) and "tokenizer." in str(said)
    assert ask(tmp_path, "c", [good], HF_HUB_OFFLINE="1") == online[:2]
    assert (
        json.loads((tmp_path / "c/0/tokenizer.json").read_text())["model"]
        == (json.loads((given / "tokenizer.json").read_text())["model"])
    )


def test_a_folder_with_a_tokenizer_is_a_path_too(given: Path) -> None:
    from stages.data.tokens.pin import pin_tokenizer

    config = TokenizerConfig(kind="file", path=given.name, eos_token="<eos>")
    assert pin_tokenizer(config, given.parent).path == str(given / "tokenizer.json")
    url = TokenizerConfig(kind="file", path=f"file://{given}/tokenizer.json", eos_token="<eos>")
    assert pin_tokenizer(url, Path("/")).key_fields() == pin_tokenizer(config, given.parent).key_fields()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "hub", "path": "a/b", "eos_token": "x"}, "revision is missing: kind hub needs"),
        ({"kind": "hub", "path": "a/b", "eos_token": "x", "revision": "main"}, "revision"),
        ({"kind": "file", "path": "a", "eos_token": "x", "revision": "0" * 40}, "revision = .* has no effect"),
        ({"kind": "bpe"}, "vocab_size is missing"),
        ({"kind": "bytes", "pad_token": "x"}, "pad_token = 'x' has no effect with kind bytes"),
        ({"kind": "bytes", "train_bytes": 5}, "train_bytes = 5 has no effect"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TokenizerConfig.model_validate(fields)


def test_the_commit_is_in_the_key() -> None:
    one, two = (
        TokenizerConfig(kind="hub", path="a/b", revision=c * 40, eos_token="x").key_fields() for c in ("0", "1")
    )
    assert one != two and one["path"] == "a/b"
