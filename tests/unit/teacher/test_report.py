"""What an epoch's counters say."""

from __future__ import annotations

import pytest

from distill_dist.teacher.report import Served, ServiceReport, served_rows, service_report

BEFORE = {
    "teacher2": {"memory_hits": 10, "misses": 30, "busy_ms": 500, "real_tokens": 100, "padded_tokens": 120}
}
NOW = {
    "teacher2": {
        "memory_hits": 70, "disk_hits": 10, "misses": 60, "busy_ms": 5500, "real_tokens": 900, "padded_tokens": 1120,
        "restarts": 2, "restarting_ms": 1000, "out_of_memory": 1, "damaged": 3, "waiting_tokens": 70,
        "answered_bytes": 5000,
    },
    "teacher3": {"memory_hits": 0, "misses": 100, "busy_ms": 4000, "real_tokens": 800, "padded_tokens": 1000},
}  # fmt: skip


def test_counts_are_since_the_last_report_and_over_all_hosts() -> None:
    found = service_report(BEFORE, NOW, elapsed_s=10.0)
    assert found is not None
    assert found.all.rows == 60 + 10 + 30 + 100
    assert found.busy_share == pytest.approx(8.0 / 20.0)
    scalars = found.scalars()
    assert scalars["teacher/hit_share"] == pytest.approx(70 / 200)
    assert scalars["teacher/fill_share"] == pytest.approx(1600 / 2000)
    assert scalars["teacher/tokens_per_s"] == pytest.approx(1600 / 8.0)
    assert scalars["teacher/bytes_per_row"] == 5000 / 200
    assert scalars["teacher/busy_share"] == found.busy_share
    assert scalars["teacher2/tokens_per_s"] == pytest.approx(800 / 4.0)
    assert scalars["teacher2/waiting_tokens"] == scalars["teacher/waiting_tokens"] == 70
    assert scalars["teacher3/hit_share"] == 0
    text = "200 rows, 35% cached; teachers busy 40% of the time, students wait 10.0%; 2 worker restart(s), 1 batch(es)"
    assert found.line(0.1).startswith(text)


def test_a_host_that_was_started_again_counts_from_nothing() -> None:
    again = {"teacher2": {**BEFORE["teacher2"], "misses": 7, "memory_hits": 0}}
    found = service_report(BEFORE, again, elapsed_s=1.0)
    assert found is not None
    assert found.all.rows == 7
    assert found.hosts["teacher2"].busy_s == 0.5


def test_what_happened_while_nothing_was_asked_is_said_without_shares_of_it() -> None:
    """The last steps of an epoch are asked for ahead of it; a worker may be started again meanwhile."""
    now = {"teacher2": {**BEFORE["teacher2"], "restarts": 1, "answered_bytes": 700}}
    found = service_report(BEFORE, now, elapsed_s=1.0)
    assert found is not None
    scalars = found.scalars()
    assert scalars["teacher2/restarts"] == 1
    assert not {
        name
        for name in scalars
        if name.endswith(("hit_share", "bytes_per_row", "tokens_per_s", "fill_share"))
    }
    assert found.line(0.5) == (
        "0 rows, 0% cached; teachers busy 0% of the time, students wait 50.0%; 1 worker restart(s): a worker was "
        "started again meanwhile"
    )


def test_nothing_asked_nothing_said() -> None:
    assert service_report({}, {}, elapsed_s=1.0) is None
    assert service_report(BEFORE, BEFORE, elapsed_s=1.0) is None


def test_hosts_count_for_all_students_and_teachers_in_their_processes_for_their_own() -> None:
    assert served_rows(NOW, whole=True) == (70 + 10 + 60 + 100, 0)
    assert served_rows(NOW, whole=False) == (0, 0)
    own = {"in_process": {"misses": 5, "computed_rows": 4}, "in_process-1": {"disk_hits": 2}}
    assert served_rows(own, whole=False) == served_rows(own, whole=True) == (7, 4)


@pytest.mark.parametrize(
    ("wait", "busy", "words"),
    [
        (0.3, 0.95, "more teachers would help (cluster.teachers)"),
        (0.3, 0.65, "more teachers (cluster.teachers) or asking further ahead (teacher.prefetch) would help"),
        (0.3, 0.4, "asking further ahead would help (teacher.prefetch)"),
        (0.1, 0.95, "balanced, waiting costs little"),
        (0.02, 0.0, "balanced, waiting costs little"),
        (0.019, 0.05, "the teachers have little to do: more students would help, or fewer teachers"),
        (0.019, 0.5, "balanced, students do not wait"),
    ],
)
def test_advice(wait: float, busy: float, words: str) -> None:
    served = Served(10, 0, busy * 7.0, 5, 5, 0, 0, 0, 0, 0)
    report = ServiceReport({"teacher2": served}, served, 7.0)
    assert report.line(wait).endswith(f": {words}")
    # nothing is added to what does nothing already, whatever the share of one epoch is on the other side of a limit
    nearby = {report.advice(wait + difference) for difference in (-0.01, 0.0, 0.01)}
    assert not (any("more teachers" in each for each in nearby) and any("fewer" in each for each in nearby))


def test_advice_knows_who_computes_and_what_happened() -> None:
    served = Served(10, 0, 1.0, 5, 5, 0, 0, 0, 0, 0)
    for name in ("in_process", "in_process-1"):
        here = ServiceReport({name: served}, served, 7.0)
        assert here.advice(0.4) == "teacher processes would compute while the students do (cluster.teachers)"
    nothing = Served(10, 10, 0.0, 0, 0, 0, 0, 0, 0, 0)
    assert "balanced" in ServiceReport({"in_process": nothing}, nothing, 7.0).advice(0.0)
    again = Served(10, 0, 1.0, 5, 5, 1, 0, 0, 0, 0)
    assert "started again" in ServiceReport({"teacher2": again}, again, 7.0).advice(0.8)
