"""Where a model, tokenizer or data set lies: in a package, in a folder, in the cache or on the hub."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import get_session

from distill_dist.durable import sha256_file
from distill_dist.errors import UserError

PACKAGE_PREFIX = "pkg://"
# The hub library itself tries for a minute and more before it says that nobody answers.
PROBE_S = 5.0
# Weights only as safetensors: everything else that models are shipped in is a pickle.
WEIGHT_PATTERN = "*.safetensors"
TOKENIZER_PATTERNS = ["*.json", "*.txt", "*.model"]
SUBFOLDERS = ["*/*"]  # copies of the model for other frameworks
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def weights_digest(folder: Path) -> str:
    """sha256 over the names and digests of the weight files in ``folder``."""
    return digest_of_weights({path.name: sha256_file(path) for path in folder.glob(WEIGHT_PATTERN)})


def digest_of_weights(sums: Mapping[str, str]) -> str:
    """``weights_digest`` of a folder whose weight files have these names and sha256."""
    lines = "".join(f"{name} {sums[name]}\n" for name in sorted(sums))
    return hashlib.sha256(lines.encode()).hexdigest()


def locate(path: str, *, what: str, weights: bool = True) -> str:
    """The local folder of a model or tokenizer named ``path``; downloaded if it is only on the hub.

    ``path`` is `pkg://PACKAGE/FOLDER`, a folder, or a hub name; ``what`` is how messages call it
    (`teacher.path`); ``weights`` False is enough for a tokenizer. Raises UserError, within about 10 s where
    the hub cannot be reached.
    """
    if path.startswith(PACKAGE_PREFIX):
        return str(_package_folder(path, what))
    if not path:
        raise UserError(f"{what} is empty: give a folder, a hub name or {PACKAGE_PREFIX}PACKAGE/FOLDER")
    if os.path.isdir(path):  # unlike Path's, False for a name that no file can have
        return path
    _require_hub_name(path, what)
    patterns = [*TOKENIZER_PATTERNS, *([WEIGHT_PATTERN] if weights else [])]
    cached = _cached_model(path, patterns)
    if cached and (not weights or any(Path(cached).glob(WEIGHT_PATTERN))):
        return cached
    _require_hub(path, what)
    try:
        folder = snapshot_download(path, allow_patterns=patterns, ignore_patterns=SUBFOLDERS)
    except (OSError, ValueError) as error:
        raise UserError(_download_failed(path, what, error)) from error
    if weights and not any(Path(folder).glob(WEIGHT_PATTERN)):
        raise UserError(
            f"{what} {path!r} has no {WEIGHT_PATTERN} on the hub: convert its weights, pickles are not read"
        )
    return folder


def locate_dataset(path: str, *, what: str) -> tuple[str, str]:
    """(folder or hub name to load, revision) of the data set ``path``; the revision of a folder is "".

    The hub goes before the cache, because the cache may hold one configuration of many; without the hub the
    cached commit is used. Raises UserError, within about 10 s where there is neither.
    """
    if not path:
        raise UserError(f"{what} is empty: give a folder or the hub name of a data set")
    if os.path.isdir(path):
        return path, ""
    _require_hub_name(path, what)
    reason = _hub_trouble()
    if reason is None:
        try:
            return path, str(HfApi().dataset_info(path, timeout=PROBE_S).sha)
        except (OSError, ValueError) as error:
            raise UserError(_download_failed(path, what, error)) from error
    cached = _cached_dataset(path)
    if cached is None:
        raise UserError(_unreachable(path, what, reason))
    return cached, Path(cached).name  # a snapshot's folder is named by its commit


def is_hub_model(path: str) -> bool:
    """Whether ``path`` is known to be a model's name on the hub: no folder here, and downloaded before."""
    if os.path.exists(path) or not HUB_NAME.fullmatch(path):
        return False
    return isinstance(try_to_load_from_cache(path, "config.json"), str)


def _package_folder(path: str, what: str) -> Path:
    """The folder inside an installed package, found without running any of the package's code."""
    package, _, inner = path.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{what} {path!r}: no Python package {package!r} is installed here; install it (pip install …)"
        )
    for root in spec.submodule_search_locations:
        if (folder := Path(root, inner)).is_dir():
            return folder
    raise UserError(f"{what} {path!r}: the package {package!r} has no folder {inner!r}")


def _require_hub_name(path: str, what: str) -> None:
    if os.path.exists(path):
        raise UserError(f"{what} {path!r} is a file: give the folder it lies in")
    if not HUB_NAME.fullmatch(path):
        raise UserError(
            f"{what} {path!r}: there is no such folder, and it is no hub name (NAME or OWNER/NAME). A model of "
            "your own is there once its run has scored an epoch: train it first"
        )


def _cached_model(name: str, patterns: list[str]) -> str | None:
    try:
        return snapshot_download(
            name, allow_patterns=patterns, ignore_patterns=SUBFOLDERS, local_files_only=True
        )
    except (OSError, ValueError):
        return None


def _cached_dataset(name: str) -> str | None:
    try:
        return snapshot_download(name, repo_type="dataset", local_files_only=True)
    except (OSError, ValueError):
        return None


def _require_hub(path: str, what: str) -> None:
    reason = _hub_trouble()
    if reason is not None:
        raise UserError(_unreachable(path, what, reason))


def _hub_trouble(probe_s: float = PROBE_S) -> str | None:
    """Why the hub cannot be asked, or None when it answers; takes at most ``probe_s`` seconds."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answer: SimpleQueue[str | None] = SimpleQueue()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=probe_s)
        # The hub library changed its HTTP client twice; the clients' errors share no base but this.
        except Exception as error:
            answer.put(f"{constants.ENDPOINT} does not answer: {error}")
        else:
            answer.put(None)

    # A thread, because a resolver that hangs obeys no timeout of the HTTP client.
    threading.Thread(target=ask, daemon=True, name="hub-probe").start()
    try:
        return answer.get(timeout=probe_s)
    except Empty:
        return f"{constants.ENDPOINT} did not answer within {probe_s:g} s"


def _unreachable(path: str, what: str, reason: str) -> str:
    return (
        f"{what} {path!r} is no folder here, is not in the cache ({constants.HF_HUB_CACHE}), and the hub "
        f"cannot be reached ({reason}). Download it on a machine that reaches the hub and give its folder, "
        "or set HF_HOME to a cache that holds it (HF_HUB_OFFLINE=1 then asks the hub for nothing)"
    )


def _download_failed(path: str, what: str, error: Exception) -> str:
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{what} {path!r} is no folder here, and the hub has nothing of that name that you may read "
            "(mend the name, or set HF_TOKEN)"
        )
    return f"{what} {path!r} could not be downloaded from {constants.ENDPOINT}: {error}"
