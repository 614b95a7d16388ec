"""What a student does when a step does not open: nothing it handed over to be written is left behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distill_dist.errors import Interrupted, UserError
from distill_dist.teacher.local import TeacherLost
from distill_dist.trainer import _FAILED, _GO, _LOST, _STOP, _UNSAVED, Trainer

FULL = Interrupted("the disk is full")


class Group:
    """One of two students; ``others`` is the sibling's word."""

    rank = 0

    def __init__(self, others: int) -> None:
        self.others = others

    def agree(self, value: int) -> int:
        return max(value, self.others)

    def hear(self, text: str | None) -> tuple[int, str]:
        return (1, "its reason") if text is None else (0, text)

    def gone(self) -> list[str]:
        return []


def trainer(
    *, others: int = _GO, stop: bool = False, failed: bool = False, broken: Exception | None = None
) -> tuple[Trainer, list[str]]:
    """And what it did; ``broken`` is what ``settle`` raises."""
    did: list[str] = []
    unused: Any = None
    group: Any = Group(others)

    def settle() -> None:
        did.append("settle")
        if broken is not None:
            raise broken

    found = Trainer(
        engine=unused, student=unused, group=group, telemetry=SimpleNamespace(), device=unused,  # type: ignore[arg-type]
        learning_rate=unused, why_stop=lambda: "by a signal" if stop else None, waited_s=unused, open_epoch=unused,
        save=lambda step: did.append(f"save {step}"), save_failed=lambda: failed, settle=settle, end_epoch=unused,
        spoke=unused, committed=(), seed=0, steps_per_epoch=10, last_step=20, log_every=1, checkpoint_every=5,
    )  # fmt: skip
    return found, did


def open_step(found: Trainer, error: Exception | None = None, *, done: int = 7) -> Any:
    def steps() -> Any:
        if error is not None:
            raise error
        yield "a step", ()

    return found._open(steps(), done, 0)


def test_a_step_opens_where_nothing_is_wrong() -> None:
    found, did = trainer()
    assert open_step(found) == ("a step", ())
    assert did == []


@pytest.mark.parametrize(("failed", "others"), [(True, _GO), (False, _UNSAVED), (True, _UNSAVED)])
def test_a_checkpoint_that_failed_ends_all_students_at_the_next_step(failed: bool, others: int) -> None:
    found, did = trainer(failed=failed, others=others, broken=FULL)
    with pytest.raises(Interrupted, match="the disk is full"):
        open_step(found)
    assert did == ["settle"], "what could not be written is not tried again"


@pytest.mark.parametrize(
    ("settings", "error", "kind", "words"),
    [
        ({"stop": True}, None, Interrupted, "stopped by a signal after step 7"),
        ({"others": _STOP}, None, Interrupted, "stopped its reason after step 7"),
        ({"stop": True, "failed": True}, None, Interrupted, "stopped by a signal"),
        ({}, TeacherLost("nobody answers"), Interrupted, "stopped after step 7: .*nobody answers"),
        ({"others": _LOST, "failed": True}, None, Interrupted, "stopped after step 7: its reason"),
        ({}, UserError("a bad row"), UserError, "a bad row"),
        ({"others": _FAILED}, None, UserError, "its reason"),
    ],
)
def test_whatever_ends_a_run_waits_for_the_checkpoint_of_its_last_step(
    settings: dict[str, Any], error: Exception | None, kind: type[Exception], words: str
) -> None:
    found, did = trainer(**settings)
    with pytest.raises(kind, match=words):
        open_step(found, error)
    assert did == ["save 7", "settle"]
    again, did = trainer(**settings)
    with pytest.raises(kind):
        open_step(again, error, done=0)
    assert did == ["settle"], "a run that made no step has nothing to save"


def test_who_is_gone_is_named_where_a_launcher_signals_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "gone", lambda group: ["rank 2 (process 17 on n1)"])
    found, _ = trainer(stop=True)
    with pytest.raises(
        Interrupted, match=r"after step 7, rank 2 \(process 17 on n1\) is gone; the same command"
    ):
        open_step(found, None)


def test_a_run_ends_when_its_last_checkpoint_stands() -> None:
    found, did = trainer()
    found.run(start=20)
    assert did == ["settle"]
    found, did = trainer(broken=FULL)
    with pytest.raises(Interrupted, match="the disk is full"):
        found.run(start=20)
