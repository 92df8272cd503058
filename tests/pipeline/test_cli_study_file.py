"""A wrong study file, or one whose inputs are not there: a line a fault, exit code 2, nothing made before."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stages.training.pretrain.imported import folder_digest
from tests.pipeline.called import Command
from tests.tiny import SOURCE, STUDY, replaced

TOKENIZER = "tokenizer: {kind: bytes}"
BASE = "base: {steps: 4, batch_tokens: 256, sequence_length: 32, lr: 3e-3, checkpoint_every: 2}"
INFINI = STUDY[STUDY.index("  infini-linear:") : STUDY.index("  local:")]

STUDY_FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", r"tiny\.yaml: the file is empty; a study file is a mapping"),
    "list": ("- a\n", r"it holds a list; .*Fix"),
    "two documents": (STUDY + "---\na: 1\n", r"line \d+, column 1: not YAML"),
    "tab": (replaced("seeds:", "\tseeds:"), r"line 3, column 1: .*Fix: indent with spaces"),
    "key twice": (STUDY + "name: other\n", r"line \d+: key 'name' stands twice.*Fix"),
    "no word as key": (replaced("local: {kind: local}", "12: {kind: local}"), r"key 12 is not a word.*Fix"),
    "binary": (bytes(range(256)), r"not a text file in UTF-8 \(byte 128 is 0x80\).*Fix"),
    "utf-16": (STUDY.encode("utf-16"), r"not a text file in UTF-8"),
    "control character": (STUDY + 'description: "\x07"\n', r"not YAML: unacceptable character"),
    "too deep": ("a: " + "[" * 3000, r"nested more than 40 levels deep"),
    "python object": (replaced("tiny", "!!python/object/apply:os.system [ls]"), r"not YAML: could not determine"),
    "not the number it says": (replaced("name: tiny", "name: !!int x"), r"not YAML: invalid literal"),
    "section unknown": (STUDY + "abalte: {}\n", r"abalte: unknown key; did you mean 'ablate'"),
    "key of a source": (replaced("url: books", "url: books, lmit: 1"), r"sources\.0\.lmit: .* did you mean 'limit'"),
    "key of an arm": (replaced("kind: xl", "kind: xl, rle: 1"), r"arms\.xl\.rle: unknown key; did you mean 'rule'"),
    "kind of source": (replaced("pg19", "pg20"), r"sources\.0\.kind = 'pg20': unknown kind; allowed are .*'pg19'"),
    "no kind of source": (replaced("kind: pg19, ", ""), r"sources\.0.*kind is missing; allowed are python-docs"),
    "list for a section": (replaced("{kind: bytes}", "[bytes]"), r"tokenizer = a list: a section is needed.*kind"),
    "section for a list": (replaced("[{kind: pg19", "{a: [{kind: pg19").replace("books}]", "books}]}"), r"a list is"),
    "nothing for a section": (replaced("local: {kind: local}", "local:"), r"arms\.local is empty: a section is"),
    "no arms": (STUDY[: STUDY.index("arms:")] + "arms: {}\n" + STUDY[STUDY.index("pretrain:") :], r"arms = \{\}.*1"),
    "text for a number": (replaced("lr: 3e-3", 'lr: "3e-3"'), r"base\.lr = '3e-3': a number is needed"),
    "true for a number": (replaced("{steps: 4, batch_t", "{steps: true, batch_t"), r"steps = true: a whole number"),
    "fraction": (replaced("{steps: 4, batch_t", "{steps: 4.0, batch_t"), r"base\.steps = 4\.0: a whole number"),
    "text for a seed": (replaced("seeds: [0]", 'seeds: ["0"]'), r"seeds\.0 = '0': a whole number is needed"),
    "seed below 0": (replaced("seeds: [0]", "seeds: [-1]"), r"seeds\.0 = -1: must be at least 0"),
    "infinite": (replaced("kind: infini, rule: linear", "kind: infini, gate_init: 1e999"), r"gate_init = inf: a fin"),
    "not a number": (replaced("lr: 1e-3", "lr: .nan"), r"pretrain\.lr = '\.nan': a number is needed"),
    "negative": (replaced("lr: 1e-3", "lr: -1e-3"), r"pretrain\.lr = -0\.001: must be greater than 0"),
    "no heads": (replaced("heads: 2", "heads: 0"), r"trunk\.heads = 0: allowed are whole numbers >= 1"),
    "no layers": (replaced("layers: 1", "layers: -1"), r"trunk\.layers = -1: allowed are"),
    "uneven segments": (replaced("length: 128, seg", "length: 130, seg"), r"sequence_length = 130: .*128 or 160"),
    "option without effect": (replaced("kind: local", "kind: local, rule: delta"), r"local\.rule = 'delta'.*no effect"),
    "section without effect": (replaced(INFINI, ""), r"ablate: has no effect, no arm has kind infini.*Fix"),
    "split twice": (replaced("splits: [test], max_tokens_per_document: 256", "splits: [test, test]"), r"stands twice"),
    "source of the mixture": (replaced("pretrain: {", "pretrain: {mixture: {sources: {boks: 1}}, "), r"mean 'books'"),
    "length of a claim": (replaced("minimum_seeds: 3", "minimum_seeds: 3, retrieval: {length: 9}"), r"length = 9: not"),
    "prompts too short": (replaced("lengths: [256], depths: [0.0]", "lengths: [32], depths: [0]"), r"never read.*Fix"),
}


@pytest.mark.parametrize("case", STUDY_FILES)
def test_a_wrong_study_file_is_one_line(cli: Command, case: str):
    text, message = STUDY_FILES[case]
    said = cli("validate", "tiny.yaml", study=text)
    assert said.code == 2 and said.out == ""
    assert len(said.faults) == 1 and re.search(message, said.faults[0]), said.err


def test_every_fault_of_a_study_file_is_told_at_once(cli: Command):
    said = cli("validate", "tiny.yaml", study=STUDY.replace("dim: 32, layers: 1", "dim: x, layer: 1") + "foo: 1\n")
    assert said.code == 2
    assert [line.split(": ")[1].split(" ")[0] for line in said.faults] == [
        "trunk.dim",
        "trunk.layers",
        "trunk.layer",
        "foo",
    ]


INPUTS: dict[str, tuple[str, str, str]] = {
    "no books": (SOURCE, "sources: [{kind: pg19, name: b, url: nope}]", r"corpus\.sources\.0\.url = .*nope.*Fix"),
    "a file, not a folder": (SOURCE, "sources: [{kind: pg19, name: b, url: tiny.yaml}]", r"no book found.*Fix"),
    "no test split": (SOURCE, "sources: [{kind: text, name: b, url: books/*/*.txt, split: train}]", r"split 'test'"),
    "no training": (SOURCE, "sources: [{kind: text, name: b, url: books/*/*.txt, split: test}]", r"the split 'train'"),
    "empty files": (SOURCE, "sources: [{kind: text, name: b, url: void.txt, split: test}]", r"are empty.*Fix"),
    "no such protocol": (SOURCE, "sources: [{kind: pg19, name: b, url: 'foo://x'}]", r"Protocol not known: foo.*Fix"),
    "no such package": (SOURCE, "sources: [{kind: python-docs, name: b, packages: [nope]}]", r"packages = 'nope'.*Fix"),
    "built-in package": (SOURCE, "sources: [{kind: python-docs, name: b, packages: [sys]}]", r"packages = 'sys'.*Fix"),
    "wrong pin": ("url: books}", f"url: books, pin: 'sha256:{'0' * 64}'}}", r"sources\.0\.pin = .*not the pinned.*Fix"),
    "branch as revision": (SOURCE, "sources: [{kind: hub, name: b, path: a/b, revision: main}]", r"revision = 'main'"),
    "no tokenizer file": (TOKENIZER, "tokenizer: {kind: file, path: t.json, eos_token: x}", r"path = 't\.json'.*Fix"),
    "no tokenizer": (TOKENIZER, "tokenizer: {kind: file, path: tiny.yaml, eos_token: x}", r"not a tokenizer.*Fix"),
    "no such token": (TOKENIZER, "tokenizer: {kind: file, path: words.json, eos_token: x}", r"eos_token = 'x'.*<eos>"),
    "no checkpoint": (BASE, f"base: {{init: hf, path: ./no, revision: {'0' * 40}}}", r"path = .*no such folder.*Fix"),
    "no such model": (BASE, f"base: {{init: hf, path: books, revision: {'0' * 40}}}", r"config\.json: no such file"),
    "uneven workers": ("seeds: [0]", "seeds: [0]\nexecution: {train_workers: 3}", r"train_workers = 3: .*Fix"),
}


@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_wrong_input_is_told_before_any_work(cli: Command, case: str, command: str):
    Path("void.txt").touch()
    words = {"model": {"vocab": {"<eos>": 0, "a": 1}}, "added_tokens": [{"content": "<eos>"}]}
    Path("words.json").write_text(json.dumps(words))
    old, new, message = INPUTS[case]
    said = cli(command, "tiny.yaml", study=replaced(old, new))
    assert said.code == 2 and said.out == "" and not Path("runs").exists()
    assert len(said.faults) == 1 and re.search(message, said.faults[0]), said.err


def test_tokenizer_and_checkpoint_of_different_vocabularies_are_told_before_any_work(cli: Command):
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=257, rms_norm_eps=1e-5, **shape))
    model.save_pretrained("llama")
    base = f"base: {{init: hf, path: llama, revision: '{folder_digest(Path('llama'))}'}}"
    trunk = "heads: 2, ffn_dim: 96, tie_embeddings: false"
    said = cli("run", "tiny.yaml", study=replaced(BASE, base).replace("heads: 2", trunk))
    assert said.code == 2 and not Path("runs").exists()
    assert re.fullmatch(r".*base\.path = .*has 257 tokens, the study's tokenizer 258.*Fix.*", said.faults[0])

    tokenizers = pytest.importorskip("tokenizers")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    vocabulary = {token: i for i, token in enumerate(sorted(byte_level.alphabet()))}
    words = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    words.pre_tokenizer, words.decoder = byte_level(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    words.add_special_tokens(["<eos>"])
    words.save("words.json")
    Path("broken.json").write_text('{"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "<eos>"}]}')
    broken = replaced(TOKENIZER, "tokenizer: {kind: file, path: broken.json, eos_token: <eos>}")
    said = cli("validate", "tiny.yaml", study=broken)
    assert said.code == 2 and re.search(r"tokenizer\.path = .*broken\.json.*tokenizer\.json.*Fix", said.faults[0])
    fitting = replaced(BASE, base).replace(TOKENIZER, "tokenizer: {kind: file, path: words.json, eos_token: <eos>}")
    said = cli("validate", "tiny.yaml", study=fitting.replace("heads: 2", trunk.replace("96", "64")))
    assert said.code == 2 and re.search(r"trunk\.ffn_dim = 64: the checkpoint's is 96.*Fix", said.faults[0])
    assert cli("validate", "tiny.yaml", study=fitting.replace("heads: 2", trunk)).code == 0


def test_an_environment_variable_names_itself(cli: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("INFINI_STUDY__PRETRAIN__STEPS", "many")
    assert cli("validate", "tiny.yaml").faults == ["environment: pretrain.steps = 'many': a whole number is needed"]


def test_a_new_name_changes_only_the_report(cli: Command):
    first = {s["step"]: s["key"] for s in json.loads(cli("plan", "tiny.yaml", "--json").out)["steps"]}
    text = replaced("name: tiny", "name: other")
    second = {s["step"]: s["key"] for s in json.loads(cli("plan", "tiny.yaml", "--json", study=text).out)["steps"]}
    assert {step for step in first if first[step] != second[step]} == {"report"}
