"""People as judges: balanced blind pairs, a whole session in a browser, imports of both kinds, what is said of them."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.evidence.human.config import HumanConfig, pin_results
from stages.evidence.human.export import FILES, Chosen, choose, write
from stages.evidence.human.merge import merged
from stages.evidence.human.results import rows_of, said
from stages.evidence.human.stage import STAGE
from stages.evidence.summarize.written import everything
from stages.stage import StageError
from stages.statistics.agreement import Game, bradley_terry, krippendorff_alpha, preferences_agree
from tests.browser import BROWSER, browsing
from tests.stages.summary_inputs import artifacts, examples
from tests.support import LocalContext


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return artifacts(tmp_path_factory.mktemp("human"), examples(books=6, chapters=2))


def chosen(inputs: Any, items: int = 24, seed: int = 0) -> list[Chosen]:
    return choose(everything(inputs), items=items, against=["local"], baselines=["lead"], seed=seed)


@pytest.fixture
def kit(inputs, tmp_path):
    write(chosen(inputs), "a-study", tmp_path / "kit", {})
    return tmp_path / "kit"


def ratings(kit: Path, rater: str, rule: Any, folder: Path) -> Path:
    """A file as the page saves it, by someone who follows ``rule(left system, right system)``."""
    key = json.loads((kit / "key.json").read_text())
    answers = {
        item["id"]: {"choice": rule(item["left"]["system"], item["right"]["system"]), "seconds": 1.0}
        for item in key["items"]
    }
    path = folder / f"{rater}.json"
    head = {"format": "infini-study human ratings", "version": 1, "export": key["export"], "rater": rater}
    path.write_text(json.dumps({**head, "answers": answers}))
    return path


STRENGTH = {"reference": 4, "infini-delta": 3, "local": 2, "lead": 1, "shuffled": 0}


def prefers(left: str, right: str) -> str:
    return "left" if STRENGTH[left] > STRENGTH[right] else "right"


# --- export ---------------------------------------------------------------------------------------------------------
def test_pairs_are_balanced_over_systems_sides_books_and_seeds(inputs):
    found = chosen(inputs)
    pairs = Counter(frozenset((c.left.system, c.right.system)) for c in found)
    assert len(pairs) == 4 and set(pairs.values()) == {6}
    for pair in pairs:
        of_pair = [c for c in found if {c.left.system, c.right.system} == pair]
        assert set(Counter(c.left.system for c in of_pair).values()) == {3}, "each is as often on the left"
        assert len({c.example.book for c in of_pair}) == 6, "every book before any twice"
    seeds = Counter(c.left.seed for c in found if c.left.seed >= 0 and c.right.seed >= 0)
    assert set(seeds) == {0, 1}
    assert [c.id for c in chosen(inputs)] == [c.id for c in found] != [c.id for c in chosen(inputs, seed=1)]
    few = {"items": 4, "against": ["local"], "baselines": []}
    for wrong, message in (
        ({"against": ["full"]}, r"--against = 'full': no such one \(allowed: .*local"),
        ({"arms": ["full"]}, r"--arm = 'full': no such one"),
        ({"baselines": ["last"]}, r"--baseline = 'last': no such one \(allowed: lead, central, shuffled"),
        ({"task": "sum"}, r"--task = 'sum': no such one \(allowed: continue, condense"),
        ({"decoding": "beam"}, r"--decoding = 'beam': no such one"),
    ):
        with pytest.raises(StageError, match=message):
            choose(everything(inputs), **{**few, **wrong})


def test_raters_get_no_arm_no_seed_and_no_address(kit):
    assert sorted(path.name for path in kit.iterdir()) == sorted(FILES)
    for name in ("rate.html", "label-studio.json", "label-studio.xml"):
        text = (kit / name).read_text()
        assert not any(word in text for word in ("infini-delta", '"local"', "shuffled", "seed=", "http://", "https://"))
    tasks = json.loads((kit / "label-studio.json").read_text())
    assert {"item", "context", "left", "right", "export"} == set(tasks[0]["data"])


def test_the_known_pair_does_not_show_its_answer(inputs):
    known = [one for one in chosen(inputs) if "reference" in (one.left.system, one.right.system)]
    assert len(known) == 6
    for one in known:
        assert one.left.text not in one.context and one.right.text not in one.context


# --- import ---------------------------------------------------------------------------------------------------------
def test_files_of_the_page_and_of_label_studio_merge(kit, tmp_path):
    page = ratings(kit, "ann", prefers, tmp_path)
    key = json.loads((kit / "key.json").read_text())
    tasks = [
        {
            "data": task["data"],
            "annotations": [
                {
                    "completed_by": {"email": "bob@x"},
                    "result": [{"from_name": "choice", "type": "choices", "value": {"choices": ["tie"]}}],
                },
                {"completed_by": 9, "was_cancelled": True, "result": []},
            ],
        }
        for task in json.loads((kit / "label-studio.json").read_text())
    ]
    (tmp_path / "ls.json").write_text(json.dumps(tasks))
    results = merged(kit / "key.json", [page, tmp_path / "ls.json", page])  # the same file twice is one rater once
    assert results["raters"] == {"ann": 24, "bob@x": 24} and results["export"] == key["export"]
    found = said(*rows_of(results))
    assert found.alpha is not None and found.alpha < 0.1
    assert found.wins["infini-delta", "local"].estimate == 0.75, "one says better, one says neither"


def test_win_rates_strengths_and_metrics_of_people_who_agree(kit, tmp_path):
    files = [ratings(kit, name, prefers, tmp_path) for name in ("ann", "bob", "cy")]
    found = said(*rows_of(merged(kit / "key.json", files)))
    assert set(found.wins) == {
        ("infini-delta", "local"),
        ("infini-delta", "lead"),
        ("local", "lead"),
        ("reference", "shuffled"),
    }
    assert all(value.estimate == 1 for value in found.wins.values()) and found.alpha == 1
    strengths = {name: value.estimate for name, value in found.strengths.items()}
    assert strengths["infini-delta"] > strengths["local"] > strengths["lead"]
    assert {"rouge1", "words"} <= set(found.metrics)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"export": "other"}, "ratings of the export 'other'"),
        ({"answers": {"0099-x": {"choice": "left"}}}, "the export has no item '0099-x'"),
        ({"rater": " "}, "names no rater"),
        ({"rater": {"id": 1}}, "names no rater"),
        ({"format": "x"}, "neither ratings of the page nor"),
        ({"answers": {}}, "nobody chose anything"),
        ({"rater": "\ud83d"}, r"RATINGS = .*half of a character"),
    ],
)
def test_files_of_another_export_or_with_other_items_are_one_error(kit, tmp_path, change, message):
    path = ratings(kit, "ann", prefers, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StageError, match=message):
        merged(kit / "key.json", [path])


def test_a_rater_who_comes_twice_counts_once_and_is_named(kit, tmp_path):
    ann, bob = (ratings(kit, name, prefers, tmp_path) for name in ("ann", "bob"))
    (tmp_path / "again").mkdir()
    again = ratings(kit, "ann", prefers, tmp_path / "again")
    once, twice = merged(kit / "key.json", [ann, bob]), merged(kit / "key.json", [ann, bob, again, ann])
    assert "repeated" not in once and twice["repeated"] == {"ann": 2 * once["raters"]["ann"]}
    assert {name: value for name, value in twice.items() if name != "repeated"} == once


def test_contradictions_of_one_rater_and_bad_choices_are_errors(kit, tmp_path):
    one = ratings(kit, "ann", prefers, tmp_path)
    (tmp_path / "later").mkdir()
    two = ratings(kit, "ann", lambda left, right: "tie", tmp_path / "later")
    with pytest.raises(StageError, match=r"rater 'ann' chose \w+ for item .* elsewhere, here tie"):
        merged(kit / "key.json", [one, two])
    bad = ratings(kit, "bob", lambda left, right: "both", tmp_path)
    with pytest.raises(StageError, match="'both' is no choice"):
        merged(kit / "key.json", [bad])
    with pytest.raises(StageError, match="not a key"):
        merged(one, [one])
    key = json.loads((kit / "key.json").read_text())
    for change, message in (
        ({"export": None}, "export: it says none"),
        ({"study": 5}, "study: it says none"),
        ({"items": key["items"][:1] * 2}, "stands there twice"),
        ({"study": "\ud83d"}, "half of a character"),
        (
            {"items": [key["items"][0] | {"left": key["items"][0]["left"] | {"measured": {"x": float("nan")}}}]},
            "finite",
        ),
    ):
        (tmp_path / "key.json").write_text(json.dumps(key | change))
        with pytest.raises(StageError, match=rf"KEY = '.*key.json': .*{message}"):
            merged(tmp_path / "key.json", [one])
    studio = {"data": {"item": key["items"][0]["id"], "export": key["export"]}}
    result = {"from_name": "choice", "value": {"choices": ["left", "right"]}}
    both = [{**studio, "annotations": [{"completed_by": 1, "result": [result]}]}]
    (tmp_path / "both.json").write_text(json.dumps(both))
    with pytest.raises(StageError, match="'left, right' is no choice"):
        merged(kit / "key.json", [tmp_path / "both.json"])
    (tmp_path / "cut.json").write_text('{"format"')
    with pytest.raises(StageError, match=r"cut\.json.*no JSON"):
        merged(kit / "key.json", [tmp_path / "cut.json"])


def test_results_become_an_artifact_and_are_refused_for_other_summaries(kit, inputs, tmp_path):
    results = merged(kit / "key.json", [ratings(kit, "ann", prefers, tmp_path)])
    (tmp_path / "results.json").write_text(json.dumps(results))
    config = pin_results(HumanConfig(results="results.json"), tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    STAGE.run(config, inputs, out, LocalContext(str(out)))
    table = pd.read_parquet(out / "comparisons.parquet")
    assert len(table) == 24 and set(table["score"]) == {1.0}
    assert (table.loc[table["a"] == "infini-delta", "seed"] >= 0).all()
    results["items"][0]["left"]["sha256"] = "0" * 64
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(StageError, match="another summary by"):
        STAGE.run(pin_results(HumanConfig(results="results.json"), tmp_path), inputs, out, LocalContext(str(out)))
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(StageError, match="not results of human import"):
        STAGE.run(pin_results(HumanConfig(results="results.json"), tmp_path), inputs, out, LocalContext(str(out)))


# --- statistics -----------------------------------------------------------------------------------------------------
def test_alpha_is_that_of_the_published_example():
    """Krippendorff (2011), section C: four observers, twelve units, nominal data with missing values: 0.743."""
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[value for value in unit if value is not None] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1
    assert krippendorff_alpha([["a"], ["b"]]) is None and krippendorff_alpha([["a", "a"]]) is None
    rng = random.Random(0)
    assert abs(krippendorff_alpha([[rng.choice("ab") for _ in range(2)] for _ in range(4000)]) or 0) < 0.05


def test_alpha_and_strengths_are_those_of_other_libraries():
    krippendorff, choix = pytest.importorskip("krippendorff"), pytest.importorskip("choix")
    rng = np.random.default_rng(1)
    table = rng.integers(0, 3, size=(3, 40))
    assert krippendorff_alpha(table.T.tolist()) == pytest.approx(
        krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
    )
    won = [(int(a), int(b)) for a, b in rng.integers(0, 4, size=(3000, 2)) if a != b]
    games = [Game(str(a), str(b), 1.0, "x") for a, b in won]
    theirs = choix.ilsr_pairwise(4, won, alpha=1e-6)
    ours = bradley_terry(games, draws=2)
    assert [ours[str(i)].estimate for i in range(4)] == pytest.approx(list(theirs - theirs.mean()), abs=5e-3)


def test_strengths_come_back_with_their_intervals():
    rng, true = np.random.default_rng(3), {"a": 1.0, "b": 0.0, "c": -1.0}
    pairs = (("a", "b"), ("b", "c"), ("a", "c"))
    held = 0
    for _ in range(60):
        games = [
            Game(x, y, float(rng.random() < 1 / (1 + np.exp(true[y] - true[x]))), f"book{n % 30}")
            for n in range(120)
            for x, y in pairs
        ]
        found = bradley_terry(games, draws=200)
        held += sum(found[name].low < value < found[name].high for name, value in true.items())
    assert 0.85 <= held / 180 <= 1, "95% intervals over 30 books"
    one = bradley_terry([Game("a", "b", 1.0, "x")] * 5, draws=50)
    assert np.isfinite(one["a"].estimate) and one["a"].high == np.inf, "never lost, one book"


def test_a_metric_that_follows_people_agrees_and_one_that_does_not_does_not():
    people = [0.5, -0.5, 0.5, 0.0]
    assert preferences_agree(people, [2.0, -1.0, 0.1, 5.0]) == [1, 1, 1]
    assert preferences_agree(people, [-2.0, 1.0, 0.0, 5.0]) == [0, 0, 0.5]


# --- the page -------------------------------------------------------------------------------------------------------
def test_a_whole_session_in_a_browser(kit, tmp_path):
    """Rate with the keyboard, go back, close the browser in the middle, go on, save, import."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    key = json.loads((kit / "key.json").read_text())
    tasks = [task["data"] for task in json.loads((kit / "label-studio.json").read_text())]
    shown = {(task["left"], task["right"]): task["item"] for task in tasks}
    systems = {item["id"]: (item["left"]["system"], item["right"]["system"]) for item in key["items"]}
    profile, downloads = tmp_path / "profile", tmp_path / "downloads"
    profile.mkdir()
    downloads.mkdir()

    async def begin(page: Any) -> None:
        await page.open((kit / "rate.html").as_uri())
        for letter in "ann":
            await page.press(letter)
        await page.press("Enter")
        await page.until("!document.getElementById('rate').hidden")

    async def rate(page: Any) -> None:
        left, right = [await page.value(f"document.getElementById('{side}').textContent") for side in ("left", "right")]
        choice = prefers(*systems[shown[left, right]])
        count = await page.value("document.getElementById('count').textContent")
        await page.press("ArrowLeft" if choice == "left" else "ArrowRight")
        await page.until(f"document.getElementById('count').textContent !== {json.dumps(count)}")

    async def session() -> None:
        async with browsing(profile, downloads) as page:
            await begin(page)
            await rate(page)
            await page.press("ArrowDown")  # neither, by mistake
            await page.until("document.getElementById('count').textContent.startsWith('Pair 3 ')")
            await page.press("Backspace")
            await page.until("document.getElementById('count').textContent.startsWith('Pair 2 ')")
            assert (
                await page.value("document.querySelector('[data-choice=tie]').getAttribute('aria-pressed')") == "true"
            )
            await rate(page)
            for _ in range(5):
                await rate(page)
            await page.screenshot(tmp_path / "page.png")
        async with browsing(profile, downloads) as page:  # the browser was closed in the middle
            await begin(page)
            assert (await page.value("document.getElementById('count').textContent")).startswith(
                "Pair 8 of 24, 7 rated"
            )
            for _ in range(17):
                await rate(page)
            assert "All 24 pairs are rated" in await page.value("document.getElementById('count').textContent")
            await page.press("s")
            await page.until("document.getElementById('said').textContent === 'saved: 24 of 24'")
            for _ in range(600):
                if list(downloads.glob("*.json")):
                    break
                await asyncio.sleep(0.05)

    asyncio.run(session())
    (saved,) = downloads.glob("ratings-*.json")
    results = merged(kit / "key.json", [saved])
    assert results["raters"] == {"ann": 24}
    assert all(value.estimate == 1 for value in said(*rows_of(results)).wins.values())
    assert (tmp_path / "page.png").stat().st_size > 10_000
