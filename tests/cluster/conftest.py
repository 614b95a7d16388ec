"""One Slurm of three nodes and a spare, and two hosts without one, for all tests of this folder.

`make test` runs the small ones; DISTILL_WHOLE_CLUSTER=1 (make cluster) those marked `whole_cluster` as well: see
tests/conftest.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.hosts import Hosts, install_hosts, start_hosts
from cluster.hosts import unfit as unfit_for_hosts
from cluster.slurm import Slurm, install_slurm, start_slurm, unfit

NODES = 4


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """The cluster; about 5 s once Slurm is installed. No process of it outlives the session."""
    if reason := unfit():
        pytest.skip(reason)
    install_slurm()
    # not below pytest's own folder, which is closed to others: munged would refuse its socket there
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = start_slurm(Path(folder), nodes=NODES)
        yield cluster
        cluster.stop()
        left = cluster.processes()
        assert left == []


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two hosts, h1 and h2; about 2 s once sshd and pdsh are installed. Nothing of them outlives the session."""
    if reason := unfit_for_hosts():
        pytest.skip(reason)
    install_hosts()
    found = start_hosts(tmp_path_factory.mktemp("hosts"), number=2)
    yield found
    found.stop()
