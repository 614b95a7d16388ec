"""The benchmark of the teacher service for people: what a student sees, the wire, the exchange, and the bars."""

from __future__ import annotations

from typing import Any


def table(found: dict[str, Any]) -> str:
    """The result of ``measure_teacher`` as text."""
    student, sizes = found["student"], found["sizes"]
    lines = [
        f"teacher: a GKD-CLS step takes {student['ready_step_ms']:.1f} ms with signals ready ({found['threads']} "
        f"thread(s), {found['processors']} processor(s)); over {sizes['rounds']} rounds",
        f"  {'signals':28}{'throughput':>11}  {'quartiles':<14}{'processor':>10}{'step':>10}{'wait, decode':>14}"
        f"{'computed':>10}",
        _way("computed in 0.9 of a step", student["hidden_teacher"]),
        _way("from a warm cache", student["warm_cache"]),
        "",
        f"{'bytes a sample':>20}{'fp32 over it':>14}{'1 − cosine':>12}{'worst row':>11}",
    ]
    for name, each in found["wire"].items():
        lines.append(
            f"  {name:6}{each['bytes_per_sample']:12.0f}{each['bytes_ratio']:14.2f}{1 - each['cosine']:12.1e}"
            f"{1 - each['least_cosine']:11.1e}"
        )
    exchange, hosts = found["exchange"], sizes["hosts"]
    scaling = found[f"scaling_{hosts}_hosts"]
    lines += [
        "",
        f"1 host serves {student['rows_per_s']:.0f} rows a second, {hosts} serve {scaling:.2f} times as many",
        f"{sizes['clients']} clients, {hosts} hosts, {sizes['seconds']:.0f} s: {exchange['requests']} requests "
        f"({exchange['requests_per_s']:.0f} a second, {exchange['cached_share']:.0%} of rows cached), "
        f"{found['lost_requests']} lost; p50 {exchange['p50_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms, "
        f"longest {exchange['max_ms']:.0f} ms",
        *(f"  error: {error}" for error in exchange["errors"]),
        "",
    ]
    lines += [f"{'holds ' if holds else 'MISSED'}  {text}" for text, holds in bars(found).values()]
    return "\n".join(lines)


def _way(name: str, each: dict[str, Any]) -> str:
    low, high = each["quartiles"]
    return (
        f"  {name:28}{each['share']:11.3f}  {low:.3f} – {high:.3f} {each['cpu_share']:10.3f}"
        f"{each['step_ms']:7.1f} ms{each['waited_ms']:11.2f} ms{each['computed_share']:10.2f}"
    )


def bars(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Each bar: its text, and whether it holds. Scaling's is of 4 hosts, and left out for another number."""
    bar, int8 = found["bars"], found["wire"]["int8"]
    checks: dict[str, tuple[str, bool]] = {
        name: (f"{name} ≥ {bar[name]}", found[name] >= bar[name])
        for name in ("hidden_teacher_share", "warm_cache_share", "scaling_4_hosts")
        if name in found
    }
    for key in ("bytes_ratio", "cosine"):
        least = bar[f"int8_{key}"]
        checks[f"int8_{key}"] = (f"{key} of int8 ≥ {least}", int8[key] >= least)
    checks["lost_requests"] = ("no request lost", found["lost_requests"] <= bar["lost_requests"])
    return checks
