from __future__ import annotations

import socket

import psutil
import pytest

from distill_dist.comm.environment import (
    LaunchEnvironment,
    parse_tasks_per_node,
    pin_interface,
    prepare_environment,
    reachable_address,
    read_environment,
    route_interface,
)
from distill_dist.errors import UserError

DEEPSPEED = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "4",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
TORCHRUN = {
    **{name: value for name, value in DEEPSPEED.items() if name != "LOCAL_SIZE"},
    "LOCAL_WORLD_SIZE": "4",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "9",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),1",
    "SLURM_PROCID": "8",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "15042",
}
INTERFACES = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def loopback() -> str:
    return next(
        name for name, found in psutil.net_if_addrs().items() if any(a.address == "127.0.0.1" for a in found)
    )


def test_no_launcher_is_a_world_of_one() -> None:
    assert read_environment({}) == LaunchEnvironment(0, 1, 0, 1, "127.0.0.1", 0)
    assert read_environment({"MASTER_ADDR": "10.0.0.1"}).world_size == 1


def test_deepspeed_and_torchrun() -> None:
    assert read_environment(DEEPSPEED) == LaunchEnvironment(5, 8, 1, 4, "10.0.0.1", 29500)
    assert read_environment(TORCHRUN) == LaunchEnvironment(5, 8, 1, 4, "10.0.0.1", 29500, agent_store=True)
    assert not read_environment({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "False"}).agent_store


def test_both_launchers_say_which_node_it_is() -> None:
    assert read_environment({**DEEPSPEED, "CROSS_RANK": "1"}).node == 1
    assert read_environment({**TORCHRUN, "GROUP_RANK": "0"}).node == 0
    assert read_environment(DEEPSPEED).node is None


def test_an_address_that_only_this_host_reaches_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reachable_address("127.0.0.1") is None
    assert reachable_address("::1") is None
    assert reachable_address("10.0.0.1") == "10.0.0.1"
    found = [(2, 1, 6, "", ("127.0.1.1", 0)), (2, 1, 6, "", ("10.0.0.7", 0))]
    monkeypatch.setattr("distill_dist.comm.environment.socket.getaddrinfo", lambda *_, **__: found)
    assert reachable_address("this-host") == "10.0.0.7"


def test_a_launcher_that_says_nothing_of_nodes_is_one_node() -> None:
    bare = {name: DEEPSPEED[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    found = read_environment(bare)
    assert (found.local_rank, found.local_size) == (0, 8)


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_half_an_environment_is_refused_by_name(missing: str) -> None:
    half = {name: value for name, value in DEEPSPEED.items() if name != missing}
    with pytest.raises(UserError, match=f"the environment lacks {missing}; start with"):
        read_environment(half)


def test_what_is_left_is_true_for_the_students() -> None:
    environment = {**TORCHRUN, **DEEPSPEED, "HOME": "/home/someone"}
    prepare_environment(environment, read_environment(DEEPSPEED), student_rank=3, students=6)
    assert "LOCAL_SIZE" not in environment  # 66 MB a rank in /dev/shm
    assert "TORCHELASTIC_USE_AGENT_STORE" not in environment  # every further rendezvous would hang
    assert environment["HOME"] == "/home/someone"
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    assert [environment[name] for name in names] == ["3", "6", "1", "10.0.0.1", "29500"]


def test_the_way_to_oneself_is_the_loopback() -> None:
    assert route_interface("127.0.0.1") == loopback()


def test_an_address_nobody_knows_has_no_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("unknown name")

    monkeypatch.setattr("distill_dist.comm.environment.socket.getaddrinfo", unknown)
    assert route_interface("no-such-host") is None
    environment: dict[str, str] = {}
    pin_interface(environment, "no-such-host")
    assert environment == {}


def test_the_users_interface_wins() -> None:
    environment = {"GLOO_SOCKET_IFNAME": "ib0"}
    pin_interface(environment, "127.0.0.1")
    assert environment == {
        "GLOO_SOCKET_IFNAME": "ib0",
        "TP_SOCKET_IFNAME": loopback(),
        "NCCL_SOCKET_IFNAME": loopback(),
    }
    assert set(environment) == set(INTERFACES)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize("text", ["abc", "-1", "1.5", "\uff11", "9" * 5000])
def test_what_is_no_number_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(UserError, match=f"{name}='{text[:5]}.*no whole number; start with"):
        read_environment({**DEEPSPEED, name: text})


def test_a_rank_outside_of_its_world_and_an_empty_one_are_refused() -> None:
    with pytest.raises(UserError, match="RANK=8 in a world of WORLD_SIZE=8"):
        read_environment({**DEEPSPEED, "RANK": "8"})
    with pytest.raises(UserError, match="lacks RANK"):
        read_environment({**DEEPSPEED, "RANK": ""})


@pytest.mark.parametrize("port", ["0", "65536", "70000"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(UserError, match=f"MASTER_PORT={port}, which is no port"):
        read_environment({**DEEPSPEED, "MASTER_PORT": port})


def test_a_task_of_slurm_has_its_own_nodes_size() -> None:
    found = read_environment(SLURM)
    assert found == LaunchEnvironment(8, 9, 0, 1, "10.0.0.1", 15042, node_sizes=(4, 4, 1))
    assert read_environment({**SLURM, "SLURM_PROCID": "5", "SLURM_NODEID": "1"}).local_size == 4


def test_what_slurm_did_not_start_as_a_task_is_alone() -> None:
    batch = {name: value for name, value in SLURM.items() if not name.startswith("SLURM_STEP")}
    assert read_environment(batch).world_size == 1
    assert read_environment({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}).world_size == 1


def test_another_launcher_inside_of_a_task_wins() -> None:
    assert read_environment({**SLURM, **DEEPSPEED}) == read_environment(DEEPSPEED)


@pytest.mark.parametrize(
    "missing", ["MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE"]
)
def test_a_task_without_an_address_is_told_of_the_script(missing: str) -> None:
    half = {name: value for name, value in SLURM.items() if name != missing}
    with pytest.raises(UserError, match=f"lacks {missing}; .*slurm/gkd_mnli.sh"):
        read_environment(half)


@pytest.mark.parametrize("text", ["", "x", "4(x)", "4(2)", "4;2", "4(x2)1"])
def test_a_list_of_tasks_that_slurm_does_not_write_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"unlike `4\(x2\),1`"):
        parse_tasks_per_node(text)


def test_a_node_outside_of_the_step_is_refused() -> None:
    with pytest.raises(UserError, match="SLURM_NODEID=3 among 3 nodes"):
        read_environment({**SLURM, "SLURM_NODEID": "3"})
