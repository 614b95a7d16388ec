"""The report in a real browser, and with the models of a real run."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.apt import install
from tiny import last_json, launch
from unit.report.run_cases import write_many, write_run

from distill_dist.assemble.score import Asked, score
from distill_dist.config.load import load_config
from e2e.browser import PACKAGES, Browser, open_browser, unfit
from e2e.conftest import Reference

PHONE, DESK = 390, 1280
# where pictures of the pages go, for who wants to look: tests/e2e writes them nowhere else
PICTURES = os.environ.get("DISTILL_REPORT_PICTURES", "")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if reason := unfit():
        pytest.skip(reason)
    install(PACKAGES)
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one run and one of ten, by the launcher."""
    root = tmp_path_factory.mktemp("report")
    write_run(root / "one" / "gkd", curriculum=True, examples=True)
    write_many(root / "many", seeds=2, methods={"finetune": 0.78, "kd": 0.8, "gkd": 0.87})
    write_many(root / "many", seeds=2, methods={"kd": 0.8, "gkd": 0.87}, task="qnli")
    found = {}
    for name, more in (("one", []), ("many", ["--baseline", "kd", "--details", "2", "--resamples", "500"])):
        out = root / f"{name}.html"
        done = launch("report.py", [str(root / name), "--out", str(out), *more], logs=root / f"logs-{name}")
        assert done.processes[0].returncode == 0, done.text()
        assert last_json(done.stdout())["report"] == str(out)
        found[name] = out
    return found


@pytest.mark.parametrize("name", ["one", "many"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_renders_in_its_width_without_a_complaint(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    browser.complaints()  # of the page before
    browser.open(pages[name], width=width)
    assert browser.complaints() == []
    assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
    assert browser.run("return document.documentElement.scrollWidth") == width
    drawn = browser.run("return [...document.images].map(i => i.complete && i.naturalWidth && i.clientWidth)")
    assert len(drawn) > 10
    assert all(drawn)
    assert max(drawn) <= width
    hidden, said = browser.run(
        "const places = [...document.querySelectorAll('.scroll')];"
        "return [places.map(p => p.scrollWidth > p.clientWidth + 1), places.map(p => p.matches('.goes-on'))]"
    )
    assert said == hidden, "a table that is cut says so"
    assert any(hidden) or width != PHONE
    if PICTURES:
        browser.picture(Path(PICTURES) / f"{name}-{width}.png")


def test_the_console_would_have_told(browser: Browser, tmp_path: Path) -> None:
    """The test above sees errors: here are some."""
    page = tmp_path / "bad.html"
    page.write_text("<script>nothing.at.all</script><img src=gone.png>", encoding="utf-8")
    browser.complaints()
    browser.open(page, width=DESK)
    assert len(browser.complaints()) == 2


COLUMN = """
const table = document.querySelectorAll("table")[1];
const place = [...table.tHead.rows[0].cells].findIndex(cell => cell.dataset.name === arguments[0]);
if (arguments[1]) table.tHead.rows[0].cells[place].querySelector("button").click();
return [...table.tBodies[0].rows].map(row => row.cells[place].innerText.trim());
"""


def test_tables_are_sorted_by_their_headings(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["many"], width=DESK)
    before = browser.run(COLUMN, "accuracy", False)
    assert before == sorted(before, reverse=True)
    deltas = browser.run(COLUMN, "Δ", True)
    assert deltas[-1] == "–"  # the baseline's, last either way
    numbers = [float(text) for text in deltas[:-1]]
    assert numbers == sorted(numbers, reverse=True)
    turned = browser.run(COLUMN, "Δ", True)
    assert turned == [*reversed(deltas[:-1]), "–"]
    words = browser.run(COLUMN, "configuration", True)
    assert words == sorted(words)
    assert browser.run("return document.querySelectorAll('th[aria-sort]').length") == 1


def test_runs_can_be_searched_and_opened(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["many"], width=PHONE)
    shown = browser.run(
        """const input = document.querySelector("input[data-filters]");
        input.value = "QNLI gkd"; input.dispatchEvent(new Event("input"));
        return [...document.getElementById("all-runs").tBodies[0].rows].filter(r => !r.hidden).length"""
    )
    assert shown == 2
    opened = browser.run(
        """const link = document.querySelector("#all-runs tbody tr:not([hidden]) a"); link.click();
        return new Promise(done => setTimeout(() => done(document.querySelector(link.hash).open), 50))"""
    )
    assert opened is True


def test_paper_has_everything(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["one"], width=DESK)
    paper = browser.paper()
    assert paper.startswith(b"%PDF")
    # printing opens what was closed
    assert browser.run("return [...document.querySelectorAll('details')].every(each => each.open)")
    if PICTURES:
        (Path(PICTURES) / "one.pdf").write_bytes(paper)


def test_a_real_run_with_its_models(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference.run_dir, run, ignore=shutil.ignore_patterns("checkpoints"))
    typed = json.loads((run / "command.json").read_text(encoding="utf-8"))["command"]
    assert "--num_gpus" in typed
    assert "train.trace=true" in typed
    done = launch("report.py", [str(run), "--saliency", "3"], logs=tmp_path / "r")
    assert done.processes[0].returncode == 0, done.text()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "What the models look at" in page
    assert "Loss terms" in page
    examples = json.loads((run / "saliency.json").read_text(encoding="utf-8"))["rows"]
    asked = Asked(student=str(run / "model"), splits=("dev",), saliency=True, resamples=10)
    scored = score(load_config(run / "config.yaml", [], need="evaluate"), asked).predictions["dev"]
    of_rows = enumerate(scored.more["sl_spearman_norm"].tolist())
    lowest = sorted((value, number) for number, value in of_rows if not math.isnan(value))[:3]
    assert [row["row"] for row in examples] == [number for _, number in lowest]
    for row, (value, _) in zip(examples, lowest, strict=True):
        # numbers of six digits: ranks change only where two tokens are closer than that
        assert abs(row["correlation"] - value) < 1e-3
        assert len(row["tokens"]) == len(row["student"]["norm"]) == len(row["teacher"]["dot"])
        assert row["tokens"][0] == "[CLS]"
        said = scored.student_NC[row["row"]].tolist()
        assert row["student"]["probabilities"] == pytest.approx(said, abs=1e-5)
