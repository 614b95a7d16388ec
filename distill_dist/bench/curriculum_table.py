"""The benchmark of the curriculum for people: a line per number of rows and side, what it leaves open, and the bars."""

from __future__ import annotations

from typing import Any

NAMES = {"ours": "this curriculum", "streaming": "Mosaic Streaming", "deepspeed": "DeepSpeed"}
BAR_ROWS = 10**8  # where the bars stand

HEAD = (
    f"  {'':18}{'plan':>9}{'processor':>11}{'bytes a row':>13}{'first batch':>13}{'ids/s':>10}  goes on with\n"
    f"  {'':18}{'':>9}{'':>11}{'at the peak':>13}{'after resume':>13}{'':>10}  the same rows"
)


def table(found: dict[str, Any]) -> str:
    """The result of ``measure_curriculum`` as text."""
    lines = [
        f"curriculum: one core each, global batches of {found['shape']['batch']}, shards of "
        f"{found['shape']['shard_rows']:,} rows; no cached file is read before the first batch",
        HEAD,
    ]
    for rows, sides in found["sizes"].items():
        lines.append(f"{int(rows):.0e} rows")
        lines += [_line(NAMES[name], side) for name, side in sides.items()]
    lines += ["", *_notes(found), "", *_composition(found), "", *_bars(found)]
    return "\n".join(lines)


def _line(name: str, side: dict[str, Any]) -> str:
    return (
        f"  {name:18}{side['plan_s']:7.2f} s{side['plan_cpu_s']:9.2f} s{side['bytes_per_row']:13.1f}"
        f"{side['resume_first_batch_s']:11.2f} s{side['ids_per_s']:10.1e}  "
        f"{'yes' if side['resumes_exactly'] else 'no'}"
    )


def _notes(found: dict[str, Any]) -> list[str]:
    lines = []
    for rows, sides in found["sizes"].items():
        ours, streaming = sides["ours"], sides.get("streaming")
        both = ours["plan_s"] + ours["first_window_s"]
        over = f", {both / streaming['plan_s']:.2f} of Streaming's plan" if streaming else ""
        lines += [
            f"{int(rows):.0e}: the plan read {ours['plan_read_bytes'] / 1e6:.0f} MB from the disk; "
            f"{ours['plan_cached_s']:.2f} s from the cache. The first window of ids sorts inside shards, "
            f"{ours['first_window_s']:.2f} s: {both:.2f} s with the plan{over}; "
            f"after a resume {ours['resume_first_window_s']:.2f} s",
            f"       ids by single batches: {ours['ids_per_s_by_batch']:.1e}/s. Sums over processes: "
            f"{ours['reduced']['per_plan']} per plan ({ours['reduced']['bytes_per_plan'] / 1e6:.1f} MB), "
            f"{ours['reduced']['per_step']} per step",
        ]
        if "deepspeed" in sides:
            analyze = sides["deepspeed"].get("analyze_s")
            lines.append(
                "       DeepSpeed: 100 integer levels; its plan is its files by its own writer, and its clusters. "
                + (f"Its analyzer takes {analyze:.1f} s for those files. " if analyze else "")
                + "One broadcast per step"
            )
    lines.append(
        "Streaming reads no scores: it shuffles. ids/s of all by processor time, as (shard, row) or as rows"
    )
    lines += [f"left out: {name}: needs {why}" for name, why in found["left_out"].items()]
    if found["streaming_python"] is None:
        lines.append(
            "Mosaic Streaming is not measured: make bench-curriculum installs it in an environment of its own"
        )
    return lines


def _composition(found: dict[str, Any]) -> list[str]:
    lines = [
        f"standard deviation of a batch's mean confidence{'exact quotas':>16}{'uniform draws':>16}{'ratio':>8}"
    ]
    for batch, each in found["composition"].items():
        lines.append(
            f"  batches of {batch:34}{each['exact']:16.5f}{each['uniform']:16.5f}{each['ratio']:8.1f}"
        )
    return lines


def bars(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Each bar at 1e8 rows: its text, and whether it holds; those that need a side which is absent are left out."""
    streaming, ratio = found["streaming_plan_s"], found["quota_std_ratio"]
    steps = found["sizes"][str(found["rows"])]["ours"]["reduced"]["per_step"]
    checks = {
        "plan_s": ("plan ≤ 10 s", found["plan_s"] <= 10),
        "bytes_per_row": ("≤ 6 bytes a row", found["bytes_per_row"] <= 6),
        "resume_first_batch_s": ("first batch after resume ≤ 1 s", found["resume_first_batch_s"] <= 1),
        "ids_per_s": ("≥ 1e6 ids/s", found["ids_per_s"] >= 1e6),
        "communication": ("no communication per step", steps == 0),
    }
    if streaming is not None:
        checks["streaming_plan_s"] = ("plan ≤ 0.5 × Streaming's", found["plan_s"] <= 0.5 * streaming)
    if ratio is not None:
        checks["quota_std_ratio"] = ("exact quotas ≥ 10 times more even", ratio >= 10)
    return checks


def _bars(found: dict[str, Any]) -> list[str]:
    if found["rows"] != BAR_ROWS:
        return [f"the bars stand at {BAR_ROWS:.0e} rows: --rows {BAR_ROWS:.0e}"]
    return [f"{'holds ' if holds else 'MISSED'}  {text}" for text, holds in bars(found).values()]
