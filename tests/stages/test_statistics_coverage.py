"""Every interval covers, and every test rejects, as often as it says: simulated, nominal against actual.

What is asserted: at least 90% where seeds differ (sd 0.5 on the logit scale), 93% where they do not, for a nominal 95%;
size at most 5%. Three standard errors of the simulation are allowed on top. Upwards intervals may go to 98%, and to
100% where few answers differ from the rest, since counts are whole numbers.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from stages.statistics import coverage, intervals


def judge(rows: list[coverage.CoverageRow]) -> list[str]:
    """Rows outside their bounds, as text."""
    wrong = []
    for row in rows:
        slack = 3 * math.sqrt(max(row.nominal * (1 - row.nominal), 1e-9) / row.draws)
        if row.nominal < 0.5:
            # a lower bound of which 2.5% may lie too high: 5% where its interval may cover 90% only
            low, high = 0.0, row.nominal * (2 if row.name.startswith("effective_length") and row.seeds_differ else 1)
        else:
            low, high = (0.90 if row.seeds_differ else 0.93), (1.0 if row.few else 0.98)
        if not low - slack <= row.actual <= high + slack:
            wrong.append(f"{row.name}: {row.setting}: nominal {row.nominal:g}, actual {row.actual:.3f}")
    return wrong


PARTS = {
    "accuracies": (coverage.accuracies, 1000),
    "prompts_in_common": (coverage.prompts_in_common, 1000),
    "contrasts": (coverage.contrasts, 1000),
    "knock_outs": (coverage.knock_outs, 1000),
    "curve_and_crossing": (coverage.curve_and_crossing, 120),
    "others": (coverage.others, 400),
}


def show(rows: list[coverage.CoverageRow]) -> None:
    for row in rows:
        print(f"{row.name:36} {row.setting:64} nominal {row.nominal:.3f}  actual {row.actual:.3f}")


@pytest.mark.parametrize("part", PARTS)
def test_intervals_cover_and_tests_reject_as_often_as_they_say(part):
    simulate, draws = PARTS[part]
    rows = list(simulate(draws))
    show(rows)
    assert not judge(rows)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_same_with_ten_times_as_many_simulated_studies():
    rows = list(coverage.rows(10_000))
    show(rows)
    assert not judge(rows)


def test_the_simulation_notices_an_interval_that_forgets_the_seeds(monkeypatch):
    """Wilson's over all answers of three seeds, which is what would be tempting, is caught."""

    def pooled(tables):
        found = [intervals.wilson(int(table.sum()), table.size) for table in tables]
        return np.array([one.low for one in found]), np.array([one.high for one in found])

    monkeypatch.setattr(coverage, "ITEMS", (100,))
    monkeypatch.setattr(intervals, "accuracy_many", pooled)
    rows = [row for row in coverage.accuracies(100) if row.name == "accuracy" and row.seeds_differ]
    assert len(judge(rows)) >= 4
