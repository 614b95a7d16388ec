"""The page: one file, everything escaped, nothing from elsewhere; what is missing is said with its command."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from distill_dist.errors import UserError
from distill_dist.report.collect import Choice, collect
from distill_dist.report.page import as_json, render
from distill_dist.report.run_record import find_runs, number_at, read_run
from report.run_cases import HOSTILE, write_many, write_run

VOID = {"meta", "img", "br", "input", "link"}


class Page(HTMLParser):
    """Elements and attributes of a page, and whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(*places: Path, **choice: Any) -> tuple[Page, str, dict[str, Any]]:
    found = collect(find_runs(places), Choice(**choice), progress=lambda text: None)
    text = render(found, made="now", command="python launcher/report.py x")
    return Page(text), text, as_json(found)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str, dict[str, Any]]:
    root = tmp_path_factory.mktemp("runs")
    write_many(root, seeds=2, methods={"kd": 0.8, "gkd": 0.88})
    return page_of(root, baseline="kd", details=1)


def test_a_page_of_four_runs(four: tuple[Page, str, dict[str, Any]]) -> None:
    page, _, tables = four
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in page.all("a")]
    assert links
    assert all(link is not None and link.startswith("#") and link[1:] in ids for link in links)
    # 5 pictures of the task, 12 of the one run shown in full; each of them well-formed
    pictures = [attributes["src"] or "" for attributes in page.all("img")]
    assert len(pictures) == 5 + 12
    for picture in pictures:
        ElementTree.fromstring(base64.b64decode(picture.removeprefix("data:image/svg+xml;base64,")))
    assert "1 of 4 runs have their pictures here" in page.text
    assert "deepspeed --num_gpus 3 launcher/train.py method=gkd seed=1" in page.text
    assert "torch 2.13.0" in page.text
    lines = tables["tasks"]["sst2"]["lines"]
    assert [line["label"] for line in lines] == ["gkd", "kd"]
    assert f"{lines[0]['mean']:.4f} ± {lines[0]['deviation']:.4f}" in page.text
    assert f"{lines[0]['difference']:+.4f}" in page.text
    assert "in what each line differs from kd" in page.text
    assert "method=gkd instead of kd" in page.text
    assert lines[0]["differs_in"][0] == "method"
    assert lines[0]["verdict_by"] in ("rows", "seeds", "rows, seeds")
    json.dumps(tables, allow_nan=False)


def test_the_split_that_chose_the_epochs_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", method="kd")
    assert "Each run kept its best epoch on dev, " in page_of(run)[0].text
    config = run / "config.yaml"
    config.write_text(
        config.read_text(encoding="utf-8") + "\nevaluate: {select_on: tune}\n", encoding="utf-8"
    )
    assert "Each run kept its best epoch on tune, " in page_of(run)[0].text


def test_a_split_of_no_run_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", method="kd")
    with pytest.raises(UserError, match=r"--split nope: no run here has it \(they have dev"):
        page_of(run, split="nope")
    with pytest.raises(
        UserError, match=rf"was scored on it: python launcher/evaluate.py {run} --split train"
    ):
        page_of(run, split="train")


def test_a_number_that_no_float_holds_is_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", method="kd")
    path = run / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    summary["student"]["accuracy"] = summary["splits"]["dev"]["accuracy"] = 10**400
    path.write_text(json.dumps(summary), encoding="utf-8")
    assert number_at(read_run(run).summary, "student", "accuracy") is None
    assert "run-1" in page_of(run)[1]


def test_nothing_comes_from_elsewhere(four: tuple[Page, str, dict[str, Any]]) -> None:
    text = four[1]
    without_pictures = re.sub(r'src="data:image/svg\+xml;base64,[^"]*"', "", text)
    assert not re.search(r"(src|srcset|href|action|data)=\"(?!#|data:,)", without_pictures)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|https?://", without_pictures)


def test_other_peoples_words_are_text(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "∕")
    path = write_run(tmp_path / name, examples=True, points=False)
    for file, content in (
        ("state.json", {"state": HOSTILE, "reason": HOSTILE}),
        ("versions.json", {HOSTILE: HOSTILE}),
        ("command.json", {"command": [HOSTILE]}),
    ):
        (path / file).write_text(json.dumps(content))
    summary = json.loads((path / "summary.json").read_text())
    summary |= {"task": HOSTILE, "alignment": {"route": HOSTILE, "reason": HOSTILE}}
    (path / "summary.json").write_text(json.dumps(summary))
    config = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(config + f"{json.dumps(HOSTILE)}: {json.dumps(HOSTILE)}\n")
    page, _, _ = page_of(path)
    assert len(page.all("script")) == 1
    assert all((attributes["src"] or "").startswith("data:image/svg") for attributes in page.all("img"))
    assert page.text.count(HOSTILE) >= 10
    assert not any(
        name.startswith("on") for _, attributes in page.elements for name in attributes
    )  # no event handlers


def test_the_policy_lets_only_our_script_run(four: tuple[Page, str, dict[str, Any]]) -> None:
    text = four[1]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    )


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    bare = write_run(tmp_path / "bare", predictions=False, points=False)
    (bare / "command.json").unlink()
    started = tmp_path / "started"
    started.mkdir()
    (started / "state.json").write_text('{"state": "failed", "reason": "UserError: no rows"}')
    (started / "config.yaml").write_text("method: kd\ndata: {task: sst2}\n")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "summary.json").write_text("{")
    page, _, tables = page_of(tmp_path)
    assert f"python launcher/evaluate.py {bare} --saliency --consistency" in page.text
    assert f"python launcher/report.py {bare} --saliency 8" in page.text
    again = f"launcher/train.py --config {bare}/config.yaml run_dir={bare}-again"
    assert again in page.text, "beside it, not into it"
    assert "The command was not recorded" in page.text
    assert "UserError: no rows" in page.text
    assert "summary.json cannot be read" in page.text
    assert tables["problems"] == 1
    assert {"sst2", "?"} == set(tables["tasks"])
