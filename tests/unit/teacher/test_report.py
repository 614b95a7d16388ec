"""What an epoch's counters say."""

from __future__ import annotations

import pytest

from distill_dist.teacher.report import ServiceReport, service_report

BEFORE = {
    "teacher2": {"memory_hits": 10, "misses": 30, "busy_ms": 500, "real_tokens": 100, "padded_tokens": 120}
}
NOW = {
    "teacher2": {
        "memory_hits": 70, "disk_hits": 10, "misses": 60, "busy_ms": 4500, "real_tokens": 900, "padded_tokens": 1120,
    },
    "teacher3": {"memory_hits": 0, "misses": 100, "busy_ms": 4000, "real_tokens": 800, "padded_tokens": 1000},
}  # fmt: skip


def test_counts_are_since_the_last_report_and_over_all_hosts() -> None:
    found = service_report(BEFORE, NOW, elapsed_s=10.0, wait_share=0.1)
    assert found is not None
    assert found.rows == 60 + 10 + 30 + 100
    assert found.hit_share == pytest.approx(70 / 200)
    assert found.busy_share == pytest.approx(8.0 / 20.0)
    assert found.fill_share == pytest.approx(1600 / 2000)
    assert found.tokens_per_s == pytest.approx(1600 / 8.0)
    assert "200 rows, 35% cached" in str(found)
    assert found.scalars()["teacher/busy_share"] == found.busy_share


def test_a_host_that_was_started_again_counts_from_nothing() -> None:
    again = {"teacher2": {**BEFORE["teacher2"], "misses": 7, "memory_hits": 0}}
    found = service_report(BEFORE, again, elapsed_s=1.0, wait_share=0.0)
    assert found is not None
    assert found.rows == 7


def test_nothing_asked_nothing_said() -> None:
    assert service_report({}, {}, elapsed_s=1.0, wait_share=0.0) is None
    assert service_report(BEFORE, BEFORE, elapsed_s=1.0, wait_share=0.0) is None


@pytest.mark.parametrize(
    ("wait", "busy", "words"),
    [
        (0.3, 0.95, "more teachers"),
        (0.3, 0.4, "teacher.prefetch"),
        (0.0, 0.01, "nothing to do"),
        (0.01, 0.5, "do not wait"),
    ],
)
def test_advice(wait: float, busy: float, words: str) -> None:
    report = ServiceReport(10, 0.0, busy, 1.0, 1.0, wait)
    assert words in report.advice()
