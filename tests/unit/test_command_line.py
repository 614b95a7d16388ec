"""launch: arguments, the one JSON line, who speaks, exit codes."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from distill_dist import command_line
from distill_dist.command_line import launch, launch_plain, leave_at_once
from distill_dist.config.describe import field_docs
from distill_dist.config.schema import RunConfig
from distill_dist.errors import Interrupted, UserError

PREPARE = ["data.source=synthetic_nli", "data.prepared=p"]

Main = Callable[[RunConfig, argparse.Namespace], dict[str, Any] | None]


@pytest.fixture(autouse=True)
def _no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


def run(main: Main, argv: list[str], **options: Any) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        launch(main, description="Test.", argv=argv, need="prepare", **options)
    return caught.value.code


def echo(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    return {"size": config.batch.size, "local_rank": args.local_rank}


def never(config: RunConfig, args: argparse.Namespace) -> NoReturn:
    raise AssertionError("main must not run")


@pytest.mark.parametrize("local_rank", [["--local_rank=1"], ["--local-rank", "1"], ["--local-rank=1"]])
def test_one_json_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, local_rank: list[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {source: synthetic_nli, prepared: p}\nbatch: {size: 8}\n")
    # overrides stand before, between and after options
    argv = ["batch.length_window=3", "--config", str(path), "batch.size=16", *local_rank, "seed=1"]
    assert run(echo, argv) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"size": 16, "local_rank": 1}
    assert out.count("\n") == 1
    assert err == ""


def test_nothing_is_printed_without_a_result_or_on_another_rank(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(lambda config, args: None, PREPARE) == 0
    assert capsys.readouterr().out == ""
    for rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        assert run(echo, PREPARE) == 0
        assert capsys.readouterr().out.count("\n") == lines


def test_flags_of_the_launcher(capsys: pytest.CaptureFixture[str]) -> None:
    def flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--replace", action="store_true")

    assert run(lambda config, args: {"replace": args.replace}, ["--replace", *PREPARE], flags=flags) == 0
    assert json.loads(capsys.readouterr().out) == {"replace": True}


def test_config_path_stands_in_for_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own = tmp_path / "config.yaml"
    own.write_text("data: {source: synthetic_nli, prepared: p}\nbatch: {size: 8}\n")
    other = tmp_path / "other.yaml"
    other.write_text("data: {source: synthetic_nli, prepared: p}\nbatch: {size: 9}\n")
    assert run(echo, [], config_path=lambda args: own) == 0
    assert json.loads(capsys.readouterr().out)["size"] == 8
    assert run(echo, ["--config", str(other)], config_path=lambda args: own) == 0
    assert json.loads(capsys.readouterr().out)["size"] == 9


@pytest.mark.parametrize(
    "argv",
    [["runs/x", *PREPARE], ["--top", "3", "runs/x", *PREPARE], ["runs/x", PREPARE[0], "--top=3", PREPARE[1]]],
)
def test_a_folder_comes_before_the_overrides(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    def show(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
        return {"folder": str(args.folder), "prepared": config.data.prepared}

    def flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--top", type=int)

    assert run(show, argv, flags=flags, folder="where the run is") == 0
    assert json.loads(capsys.readouterr().out) == {"folder": "runs/x", "prepared": "p"}
    assert run(never, [], flags=flags, folder="where the run is") == 2
    assert "DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "folder"),
    [([], None), (["batch.size=4"], None), (["runs/x"], "runs/x"), (["runs/lr=3"], "runs/lr=3")],
)
def test_a_folder_that_may_lack(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    first: list[str],
    folder: str | None,
) -> None:
    """A `key=value` is the folder only where there is one of that name, as sweeps call them."""

    def show(config: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
        found = None if args.folder is None else str(args.folder)
        return {"folder": found, "size": config.batch.size, "prepared": config.data.prepared}

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "lr=3").mkdir(parents=True)
    assert run(show, [*first, *PREPARE], folder="the run", folder_needed=False) == 0
    size = 4 if first == ["batch.size=4"] else 32
    assert json.loads(capsys.readouterr().out) == {"folder": folder, "size": size, "prepared": "p"}
    assert run(never, [*PREPARE, "runs/x"], folder="the run", folder_needed=False) == 2


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "no configuration"),
        (["--nope", *PREPARE], "--nope"),
        (["--conf", "x", *PREPARE], "--conf"),
        (["--config"], "--config"),
        (["--local_rank=x", *PREPARE], "local_rank"),
        ([*PREPARE, "batch.sze=3"], "batch.size"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["word"], "'word'"),
    ],
)
def test_wrong_input_is_one_message_of_rank_0(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: list[str], part: str
) -> None:
    assert run(never, argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert part in err
    assert "usage:" not in err
    monkeypatch.setenv("RANK", "1")
    assert run(never, argv) == 2
    assert capsys.readouterr() == ("", "")


def fail_with(error: BaseException) -> Main:
    def main(config: RunConfig, args: argparse.Namespace) -> NoReturn:
        raise error

    return main


def test_errors_of_the_work_are_printed_by_every_rank_that_has_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = fail_with(UserError("shard 3 is broken"))
    assert run(main, PREPARE) == 2
    assert capsys.readouterr() == ("", "error: shard 3 is broken\n")
    monkeypatch.setenv("RANK", "2")
    assert run(main, PREPARE) == 2
    assert capsys.readouterr() == ("", "[rank 2] error: shard 3 is broken\n")
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert run(main, PREPARE) == 2
    assert capsys.readouterr() == ("", "[rank 3] error: shard 3 is broken\n")


def test_an_error_that_another_rank_says_is_not_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    error = UserError("the same on all ranks")
    for said, expected in ((False, "error: the same on all ranks\n"), (True, "")):
        error.said = said
        assert run(fail_with(error), PREPARE) == 2
        assert capsys.readouterr().err == expected


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(fail_with(Interrupted("saved at step 4")), PREPARE) == 75
    assert capsys.readouterr().err == "stopped: saved at step 4\n"
    assert run(fail_with(KeyboardInterrupt()), PREPARE) == 130
    assert capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        launch(fail_with(ZeroDivisionError()), description="", argv=PREPARE, need="prepare")


def test_a_file_that_fails_is_one_message_and_its_traceback_is_logged(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, logger="distill_dist")
    failed = PermissionError(errno.EACCES, "Permission denied", "some/file")
    assert run(fail_with(failed), PREPARE) == 2
    assert capsys.readouterr() == ("", "error: some/file: Permission denied\n")
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[1] is failed
    monkeypatch.setenv("RANK", "2")
    assert run(fail_with(failed), PREPARE) == 2
    assert capsys.readouterr().err == "[rank 2] error: some/file: Permission denied\n"
    # what names no file, or is about a pipe, is a bug
    for error in (OSError(errno.EBADF, "Bad"), BrokenPipeError(errno.EPIPE, "Broken pipe", "x")):
        with pytest.raises(OSError, match=str(error.strerror)):
            launch(fail_with(error), description="", argv=PREPARE, need="prepare")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.EIO, "Input/output error", "c.yaml"), 2, "error: c.yaml: Input/output error\n"),
    ],
)
def test_reading_the_configuration_ends_in_order_too(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise error

    monkeypatch.setattr(command_line, "load_config", fail)
    assert run(never, PREPARE) == code
    assert capsys.readouterr() == ("", message)


def test_without_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    def flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("places", nargs="+")
        parser.add_argument("--top", type=int)

    def main(args: argparse.Namespace) -> dict[str, Any]:
        if args.top == 0:
            raise UserError("--top 0: must be more")
        return {"places": args.places}

    def code(*argv: str) -> int | str | None:
        with pytest.raises(SystemExit) as caught:
            launch_plain(main, description="Test.", flags=flags, argv=argv)
        return caught.value.code

    assert code("a", "b=c") == 0
    assert capsys.readouterr() == ('{"places": ["a", "b=c"]}\n', "")
    for argv, said in ((["--top", "x", "a"], "invalid int"), (["a", "--top=0"], "--top 0"), ([], "places")):
        assert code(*argv) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("error: ")
        assert said in err


def test_help_lists_every_field_with_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(never, ["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for key, doc in field_docs().items():
        assert f" {key}=" in text
        assert doc in text


SCRIPT = """
import sys
from distill_dist.command_line import launch
def main(config, args):
    heavy = sorted(name for name in ("torch", "deepspeed", "transformers") if name in sys.modules)
    return {"heavy": heavy}
launch(main, description="", need="prepare")
"""


def test_reading_the_command_line_imports_no_torch_and_standard_output_may_fail() -> None:
    command = [sys.executable, "-c", SCRIPT, *PREPARE]
    whole = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(whole.stdout)["heavy"] == []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as closed:
        assert closed.stdout is not None
        assert closed.stderr is not None
        closed.stdout.close()  # long before it writes: the interpreter alone takes longer to start
        assert closed.stderr.read() == ""
        assert closed.wait(timeout=60) == 0
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: the result cannot be printed: standard output: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("code", [2, 75])
def test_a_run_that_failed_skips_the_teardown(code: int) -> None:
    """What hangs or aborts at the interpreter's end does not change the code; what was printed is there."""
    program = (
        "import atexit, os, sys\n"
        "from distill_dist.command_line import leave_at_once\n"
        "atexit.register(os.abort)\n"
        "print('said')\n"
        f"leave_at_once(SystemExit({code}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (code, "said\n")


def test_a_run_that_ended_well_ends_as_usual() -> None:
    with pytest.raises(SystemExit) as caught:
        leave_at_once(SystemExit(0))
    assert caught.value.code == 0
