"""g(t) against METHOD.md §3 written out by hand, exact cuts, and pools that change at the very steps g does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import pytest

from distill_dist.curriculum.pacing import MAX_STAGES, NOISE, WHOLE, Pacing, Stage, rows_of, stages_of_epoch

# METHOD.md §3 in its own letters: t of T steps, a = full_at, b = start
METHOD: dict[str, Callable[[int, int, float, float], float]] = {
    "none": lambda t, T, a, b: 1,
    "linear": lambda t, T, a, b: b + (1 - b) * (t / (a * T)),
    "quadratic": lambda t, T, a, b: b + (1 - b) * (t / (a * T)) ** 2,
    "root": lambda t, T, a, b: b + (1 - b) * (t / (a * T)) ** 0.5,
    "step": lambda t, T, a, b: b + math.floor(t / (a * T)) * (1 - b),
    "exponential": lambda t, T, a, b: (
        b + (1 - b) * (math.exp(10 * t / (a * T)) - 1) / (math.exp(10) - 1) if t < a * T else 1
    ),
    "logarithmic": lambda t, T, a, b: b + (1 - b) * (1 + 0.1 * math.log(t / (a * T) + math.exp(-10))),
    "competence": lambda t, T, a, b: min(1, (t * (1 - b**2) / T + b**2) ** (1 / 2)),
    "fixed_exponential": lambda t, T, a, b: min(1, b * 1.9 ** math.floor(t / 100)) if t < 4000 else 1,
}
STARTS = {"competence": 0.01, "fixed_exponential": 0.04}


@dataclass(frozen=True)
class Noisy(Pacing):
    """What a platform with another libm might compute: ``ulps`` steps of a double away."""

    ulps: int = 0

    def share(self, step: int) -> float:
        value = super().share(step)
        for _ in range(abs(self.ulps)):
            value = math.nextafter(value, math.copysign(2, self.ulps))
        return min(1.0, value)


@pytest.mark.parametrize("kind", METHOD)
@pytest.mark.parametrize(
    ("total", "a", "b"), [(1000, 0.8, None), (640, 0.25, 0.5), (7, 1.0, 0.01), (900, 1.5, 0.3)]
)
def test_shares_are_those_of_the_method(kind: str, total: int, a: float, b: float | None) -> None:
    b = b if b is not None else STARTS.get(kind, 0.2)
    pacing = Pacing(kind, total, start=b, full_at=a)
    for step in range(total + 1):
        expected = min(1.0, METHOD[kind](step, total, a, b))
        # a·T here is exact in binary: the two differ in roundings alone
        assert pacing.share(step) == pytest.approx(expected, abs=1e-12), step


def test_parameters_of_their_own() -> None:
    cubic = Pacing("competence", 100, start=0.1, power=3.0)
    assert cubic.share(50) == pytest.approx((50 * (1 - 0.1**3) / 100 + 0.1**3) ** (1 / 3), abs=1e-12)
    doubling = Pacing("fixed_exponential", 100, start=0.25, increase=2.0, increase_every=7)
    shares = [doubling.share(step) for step in range(100)]
    assert [shares.index(value) for value in (0.25, 0.5, 1.0)] == [0, 7, 14]
    assert doubling.share(10**9) == 1.0, "no power overflows"


@pytest.mark.parametrize("kind", METHOD)
def test_pools_never_shrink_and_end_full(kind: str) -> None:
    for b in (0.01, 0.2, 1 / 3, 0.5, 0.9, 1.0):
        pacing = Pacing(kind, 3000, start=b, full_at=0.7, increase_every=50)
        cuts = [pacing.cut(step) for step in range(3001)]
        assert cuts == sorted(cuts)
        assert cuts[0] == (WHOLE if kind == "none" else math.floor(Fraction(b) * WHOLE))
        assert cuts[-1] == WHOLE
    assert Pacing("competence", 100, start=0.5, power=1e9).cut(0) == 1, "something is admitted whatever g is"


@pytest.mark.parametrize("kind", METHOD)
@pytest.mark.parametrize("ulps", [-4, -1, 1, 4])
def test_the_last_bits_of_g_change_no_cut(kind: str, ulps: int) -> None:
    moved = 0
    for b in (0.25, 0.5, 0.125, 0.2, 0.01, 0.9):
        noisy = Noisy(kind, 400, start=b, full_at=0.8, ulps=ulps)
        exact = Pacing(kind, 400, start=b, full_at=0.8)
        for step in range(401):
            moved += noisy.share(step) != exact.share(step)
            assert noisy.cut(step) == exact.cut(step), (b, step)
    assert moved > 0 or ulps > 0, "the noise is there"


@pytest.mark.parametrize("total", [1, 7, 100, 1000, 12_345])
def test_the_step_comes_at_the_very_step(total: int) -> None:
    """a·T as a decimal: 0.55 · 100 is 55, though in doubles it is above."""
    for percent in range(1, 101):
        pacing = Pacing("step", total, start=0.2, full_at=percent / 100)
        full = math.ceil(Fraction(percent, 100) * total)
        assert pacing.share(full - 1) == 0.2
        assert pacing.share(full) == 1.0


def test_rows_are_the_share_rounded_up() -> None:
    for num_rows in (1, 2, 3, 10, 999, 1000, 67_349, 1_000_000):
        for percent in range(1, 101):
            cut = Pacing("step", 10, start=percent / 100).cut(0)
            assert rows_of(cut, num_rows) == math.ceil(Fraction(percent, 100) * num_rows), (percent, num_rows)
    assert rows_of(1, 1) == 1
    assert rows_of(WHOLE, 10**9) == 10**9
    assert rows_of(WHOLE // 4, 10**9) == 250_000_000


def changes(pacing: Pacing, epoch: int, steps: int, align: int) -> list[Stage]:
    """By trying every step at which a pool may change."""
    found: list[Stage] = []
    for step in range(0, steps, align):
        cut = pacing.cut(epoch * steps + step)
        if not found or found[-1].cut != cut:
            found.append(Stage(step, cut))
    return found


@pytest.mark.parametrize("kind", ["none", "step", "fixed_exponential", "linear"])
@pytest.mark.parametrize("align", [1, 3, 64, 1000])
def test_few_changes_are_found_at_their_steps(kind: str, align: int) -> None:
    several = 0
    for steps in (1, 2, 97, 120):
        pacing = Pacing(kind, 5 * steps, start=0.04, full_at=0.53, increase_every=13)
        for epoch in range(5):
            found = stages_of_epoch(pacing, epoch=epoch, steps_per_epoch=steps, align=align)
            assert found == changes(pacing, epoch, steps, align)
            several += len(found) > 1
    assert several or kind == "none" or align == 1000


@pytest.mark.parametrize("kind", METHOD)
@pytest.mark.parametrize("align", [1, 7])
def test_many_changes_are_thinned_and_never_ahead(kind: str, align: int) -> None:
    steps, epochs = 2000, 3
    pacing = Pacing(kind, steps * epochs, start=STARTS.get(kind, 0.2), full_at=0.8)
    for epoch in range(epochs):
        found = stages_of_epoch(pacing, epoch=epoch, steps_per_epoch=steps, align=align)
        starts = [stage.first_step for stage in found]
        assert starts[0] == 0
        assert starts == sorted(set(starts))
        assert all(start % align == 0 for start in starts)
        assert len(found) <= MAX_STAGES
        exact = changes(pacing, epoch, steps, align)
        if len(exact) <= MAX_STAGES:
            assert found == exact
        longest = math.ceil(math.ceil(steps / align) / MAX_STAGES) * align
        stage = -1
        for step in range(steps):
            stage += stage + 1 < len(found) and starts[stage + 1] == step
            cut = found[stage].cut
            assert cut <= pacing.share(epoch * steps + step) * WHOLE + NOISE
            assert cut == pacing.cut(epoch * steps + starts[stage])
            if len(exact) > MAX_STAGES:
                assert step - starts[stage] < longest
            else:
                assert cut == pacing.cut(epoch * steps + step // align * align)


def test_as_many_changes_as_fit_are_exact() -> None:
    """All at the beginning of the epoch, where places at equal distances would miss them."""
    for last, exact in ((MAX_STAGES - 1, True), (MAX_STAGES, False)):
        pacing = Pacing("linear", 1000, full_at=last / 1000)
        expected = changes(pacing, 0, 1000, 1)
        assert len(expected) == last + 1
        assert (stages_of_epoch(pacing, epoch=0, steps_per_epoch=1000, align=1) == expected) == exact
