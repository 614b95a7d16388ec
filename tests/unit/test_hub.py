from __future__ import annotations

import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from distill_dist import hub
from distill_dist.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and a hub whose port is closed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


def fill(cache: Path, repository: str, files: list[str]) -> Path:
    """A snapshot as the hub library lays it down."""
    folder = cache / repository / "snapshots" / COMMIT
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (cache / repository / "refs").mkdir()
    (cache / repository / "refs" / "main").write_text(COMMIT)
    return folder


def test_a_folder_is_itself(tmp_path):
    assert hub.locate(str(tmp_path), what="teacher.path") == str(tmp_path)


def test_a_folder_in_a_package_is_found_without_running_the_package(tmp_path, monkeypatch):
    (tmp_path / "some_weights" / "model").mkdir(parents=True)
    (tmp_path / "some_weights" / "__init__.py").write_text("raise RuntimeError('ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = hub.locate("pkg://some_weights/model", what="student.path")
    assert found == str(tmp_path / "some_weights" / "model")
    assert "some_weights" not in sys.modules
    with pytest.raises(UserError, match="package 'some_weights' has no folder 'other'"):
        hub.locate("pkg://some_weights/other", what="student.path")


@pytest.mark.parametrize("path", ["pkg://no_such_package/model", "pkg://", "pkg://a.b/c", "pkg://../x"])
def test_a_package_that_is_not_installed(path):
    with pytest.raises(UserError, match=r"student.path 'pkg:.*no Python package .* installed"):
        hub.locate(path, what="student.path")


@pytest.mark.parametrize("path", ["runs/teacher/model", "/no/such/folder", "./model", "a/b/c", "x y"])
def test_a_path_that_is_no_hub_name_asks_nobody(path, monkeypatch):
    monkeypatch.setattr(hub, "_hub_trouble", lambda: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=r"teacher.path .*no such folder, and it is no hub name"):
        hub.locate(path, what="teacher.path")


def test_a_file_and_nothing_at_all(tmp_path):
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(UserError, match="is a file"):
        hub.locate(str(tmp_path / "model.bin"), what="teacher.path")
    with pytest.raises(UserError, match=r"teacher\.path is empty"):
        hub.locate("", what="teacher.path")


def test_what_is_cached_asks_nobody(cache, monkeypatch):
    monkeypatch.setattr(hub, "_hub_trouble", lambda: pytest.fail("asked the hub"))
    folder = fill(cache, "models--google-bert--bert-base-uncased", ["config.json", "model.safetensors"])
    assert hub.locate("google-bert/bert-base-uncased", what="student.path") == str(folder)


def test_a_cached_tokenizer_is_no_cached_model(cache):
    folder = fill(cache, "models--bert-base-uncased", ["tokenizer.json"])
    assert hub.locate("bert-base-uncased", what="data.tokenizer", weights=False) == str(folder)
    with pytest.raises(UserError, match="hub cannot be reached"):
        hub.locate("bert-base-uncased", what="student.path")


@pytest.mark.parametrize("find", [hub.locate, hub.locate_dataset])
def test_a_hub_that_is_not_there_is_one_message_at_once(find):
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        find("nyu-mll/glue", what="data.path")
    assert time.monotonic() - started < 10
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "data.path 'nyu-mll/glue'",
        constants.ENDPOINT,
        "give its folder",
        "HF_HOME",
        "HF_HUB_OFFLINE",
    ):
        assert part in message


def test_a_hub_that_accepts_and_says_nothing_is_given_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        assert "answer" in (hub._hub_trouble(probe_s=0.2) or "")
        assert 0.1 < time.monotonic() - started < 2


def test_offline_asks_nobody(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "get_session", lambda: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        hub.locate("bert-base-uncased", what="student.path")


def test_a_cached_data_set_without_a_hub(cache):
    folder = fill(cache, "datasets--nyu-mll--glue", ["README.md", "sst2/train.parquet"])
    assert hub.locate_dataset("nyu-mll/glue", what="data.path") == (str(folder), COMMIT)


class Hub(BaseHTTPRequestHandler):
    """Knows one data set and one model, and has nothing else."""

    def do_HEAD(self) -> None:
        self._answer(200, b"")

    def do_GET(self) -> None:
        if self.path.startswith("/api/datasets/some/data"):
            self._answer(200, b'{"id": "some/data", "sha": "%s", "siblings": []}' % COMMIT.encode())
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def living_hub(monkeypatch):
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("living_hub")
def test_a_living_hub_names_the_commit_of_a_data_set():
    assert hub.locate_dataset("some/data", what="data.path") == ("some/data", COMMIT)


@pytest.mark.usefixtures("living_hub")
@pytest.mark.parametrize("find", [hub.locate, hub.locate_dataset])
def test_a_living_hub_without_the_name(find):
    with pytest.raises(UserError, match=r"x.path 'some/nothing' .*the hub has nothing of that name"):
        find("some/nothing", what="x.path")


@pytest.mark.parametrize("find", [hub.locate, hub.locate_dataset])
def test_a_name_that_no_file_can_have_is_one_message(find, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"data.path 'xxx.* is no folder here"):
        find("x" * 300, what="data.path")


def test_a_name_of_the_hub_is_one_that_was_downloaded(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(cache, "models--owner--known", ["config.json"])
    (tmp_path / "owner" / "folder").mkdir(parents=True)
    fill(cache, "models--owner--folder", ["config.json"])
    names = ("owner/known", "owner/unknown", "owner/folder", "pkg://package/folder", "runs/x/model", "")
    assert [name for name in names if hub.is_hub_model(name)] == ["owner/known"]
