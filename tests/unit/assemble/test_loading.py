from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill_dist import checkpoint
from distill_dist.assemble.loading import _find_checkpoint
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError
from distill_dist.run_folder import RunFolder


@pytest.mark.parametrize(("max_steps", "refused"), [(0, False), (49, True), (50, False), (60, False)])
def test_no_run_ends_before_where_it_stands(tmp_path: Path, max_steps: int, refused: bool) -> None:
    folder = RunFolder(tmp_path)
    checkpoint.save(
        folder.checkpoints,
        step=50,
        previous=0,
        tensors={"weights/a": torch.ones(1)},
        progress={"step": 50, "best": None, "identity": {}},
        keep=checkpoint.Keep(1),
    )
    config = RunConfig()
    config = replace(config, train=replace(config.train, max_steps=max_steps))
    if refused:
        with pytest.raises(UserError, match=rf"train\.max_steps=49, but {tmp_path} is already at step 50"):
            _find_checkpoint(config, folder, {})
    else:
        assert _find_checkpoint(config, folder, {}) is not None
