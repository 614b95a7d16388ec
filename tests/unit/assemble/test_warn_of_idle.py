from __future__ import annotations

import logging
from typing import Any

import pytest
from config.trees import good_with

from distill_dist.assemble.training_rows import _warn_of_idle

EPOCH = "the student's scores are known after the first epoch of 100 steps"
WINDOW = "the pool can change only every batch.length_window="
ORDER = {"curriculum.order": "easy_to_hard", "batch.length_window": 8}
RELIANCE = {"reliance.rule": "gate"}


@pytest.mark.parametrize(
    ("settings", "warnings"),
    [
        ({**ORDER, "train.epochs": 1}, [EPOCH]),
        ({**ORDER, "train.epochs": 2}, []),
        ({**ORDER, "train.epochs": 2, "train.max_steps": 100}, [EPOCH]),
        ({**ORDER, "train.epochs": 2, "train.max_steps": 101}, []),
        ({**ORDER, "train.epochs": 1, "curriculum.source": "teacher"}, []),
        ({**RELIANCE, "train.epochs": 1}, [EPOCH]),
        ({**RELIANCE, "train.epochs": 2}, []),
        ({"train.epochs": 1, "batch.length_window": 64}, []),
        ({**ORDER, "train.epochs": 2, "batch.length_window": 25}, []),
        (
            {**ORDER, "train.epochs": 2, "batch.length_window": 26},
            [WINDOW + "26 steps, and an epoch has 100"],
        ),
        ({**ORDER, "train.epochs": 2, "batch.length_window": 26, "curriculum.pacing": "none"}, []),
        ({**RELIANCE, "train.epochs": 2, "batch.length_window": 26}, []),
        ({**ORDER, "train.epochs": 1, "batch.length_window": 26}, [EPOCH, WINDOW]),
    ],
)
def test_what_cannot_act_in_a_run_is_said(
    caplog: pytest.LogCaptureFixture, settings: dict[str, Any], warnings: list[str]
) -> None:
    caplog.set_level(logging.WARNING)
    _warn_of_idle(good_with({"method": "kd", **settings}), 100)
    assert len(caplog.messages) == len(warnings)
    for message, words in zip(caplog.messages, warnings, strict=True):
        assert words in message
