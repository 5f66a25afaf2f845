"""Steady load for a long time: what every process holds must not grow."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import median

from scipy import stats  # type: ignore[import-untyped]

from tests.chaos.load import Fate, Load, Outcome
from tests.chaos.process_figures import MIB, Held, held_by
from tests.chaos.questions import Question, detect, draw, greet, keyed_detect, pose, segment, small_image, two_tools
from tests.chaos.rows import Row, Tell
from tests.chaos.stack import ChaosStack

SCENARIO = "soak"
MINUTES = 20.0
SHARE_OF_CAPACITY = 0.7
CAPACITY_S = 15.0
USERS_AT_CAPACITY = 8
SAMPLE_EVERY_S = 2.0
# The first part fills caches, pools and arenas.
WARM_UP_SHARE = 0.25
# The rest is cut into so many windows; the median of a window is one point of the regression.
WINDOWS = 12
# One-sided, of the slope being above zero.
SIGNIFICANCE = 0.01
# A slope this small is below what an allocator gives and takes.
NOISE_BYTES_PER_MINUTE = 0.5 * MIB
NOISE_DESCRIPTORS_PER_MINUTE = 0.2
# More different images than any cache has entries.
IMAGES = 200
PROMISE = (
    f"memory and descriptors flat: least squares over the medians of {WINDOWS} windows, slope not above zero at "
    f"{SIGNIFICANCE:.0%} (one-sided t-test), or at most {NOISE_BYTES_PER_MINUTE / MIB:g} MiB and "
    f"{NOISE_DESCRIPTORS_PER_MINUTE:g} descriptors a minute"
)


@dataclass(frozen=True)
class Trend:
    """Of one figure of one process."""

    first: float
    last: float
    per_minute: float
    # That a flat one would look like this by chance.
    p_value: float

    def is_flat(self, noise_per_minute: float) -> bool:
        return self.p_value >= SIGNIFICANCE or self.per_minute <= noise_per_minute


async def run(stack: ChaosStack, tell: Tell, minutes: float = MINUTES) -> list[Row]:
    """One row for the answers, and one a process."""
    questions = [segment(), pose(), greet(), two_tools(), keyed_detect(), draw()]
    questions += [detect(f"detect {number}", small_image(number)) for number in range(IMAGES)]
    load = Load(stack.url, questions)
    tell("asking every question once")
    await load.learn()
    order = _mixed(questions)
    tell("measuring capacity")
    began = len(load.outcomes)
    await load.by_users(USERS_AT_CAPACITY, CAPACITY_S, order)
    per_second = SHARE_OF_CAPACITY * (len(load.outcomes) - began) / CAPACITY_S
    load.outcomes.clear()
    samples: list[tuple[float, Mapping[str, Held]]] = []
    restarts = stack.restarts()
    start = time.monotonic()
    async with load.going_on(per_second, order):
        while (elapsed := time.monotonic() - start) < 60 * minutes:
            samples.append((elapsed / 60, held_by(stack)))
            tell(f"{elapsed / 60:.1f} of {minutes:g} minutes at {per_second:.1f} requests a second")
            await asyncio.sleep(SAMPLE_EVERY_S)
    load.close()
    return [_answers(load.outcomes, stack.restarts() - restarts, per_second, minutes), *_rows(samples, minutes)]


def _mixed(questions: Sequence[Question]) -> cycle[Question]:
    """Every other one is about a small image that nobody has asked about for long."""
    others, small = questions[:6], questions[6:]
    return cycle([each for pair in zip(cycle(others), small, strict=False) for each in pair])


def _answers(outcomes: Sequence[Outcome], restarts: int, per_second: float, minutes: float) -> Row:
    """A refusal counts, too: below capacity nothing is to be refused. A restart would hide what had grown."""
    failures = [each for each in outcomes if each.fate is not Fate.RIGHT]
    measured = f"{len(outcomes)} requests, {len(failures)} not answered rightly; {restarts} restarts"
    if failures:
        measured += f" ({'; '.join(sorted({str(each) for each in failures})[:3])})"
    return Row(
        scenario=SCENARIO,
        done=f"{minutes:g} minutes at {SHARE_OF_CAPACITY:.0%} of capacity, {per_second:.1f} requests a second",
        promise="every answer right, no process restarted",
        measured=measured,
        holds=not failures and not restarts,
        figures={"requests": len(outcomes), "failures": len(failures), "restarts": restarts, "minutes": minutes},
    )


def _rows(samples: Sequence[tuple[float, Mapping[str, Held]]], minutes: float) -> list[Row]:
    settled = [(at, held) for at, held in samples if at >= WARM_UP_SHARE * minutes]
    memory: dict[str, list[tuple[float, float]]] = defaultdict(list)
    descriptors: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for at, held in settled:
        for name, each in held.items():
            memory[name].append((at, each.resident_bytes))
            descriptors[name].append((at, each.descriptors))
    rows = []
    for name in memory:
        resident, opened = trend_of(memory[name]), trend_of(descriptors[name])
        flat = resident.is_flat(NOISE_BYTES_PER_MINUTE) and opened.is_flat(NOISE_DESCRIPTORS_PER_MINUTE)
        rows.append(
            Row(
                scenario=SCENARIO,
                done=f"{name}, the last {1 - WARM_UP_SHARE:.0%} of {minutes:g} minutes",
                promise=PROMISE,
                measured=(
                    f"{resident.first / MIB:.0f} → {resident.last / MIB:.0f} MiB, "
                    f"{resident.per_minute / MIB:+.2f} MiB a minute (p = {resident.p_value:.3f}); "
                    f"{opened.first:.0f} → {opened.last:.0f} descriptors, {opened.per_minute:+.2f} a minute"
                ),
                holds=flat,
                figures={
                    "first_mib": round(resident.first / MIB, 1),
                    "last_mib": round(resident.last / MIB, 1),
                    "mib_per_minute": round(resident.per_minute / MIB, 3),
                    "p_value": round(resident.p_value, 4),
                    "descriptors_per_minute": round(opened.per_minute, 3),
                },
            )
        )
    return rows


def trend_of(points: Sequence[tuple[float, float]]) -> Trend:
    """Of a figure by minute."""
    size = max(1, len(points) // WINDOWS)
    windows = [points[start : start + size] for start in range(0, size * WINDOWS, size)]
    at = [median(minute for minute, _ in window) for window in windows if window]
    values = [median(value for _, value in window) for window in windows if window]
    if len(set(values)) == 1:
        return Trend(values[0], values[-1], 0.0, 1.0)
    fit = stats.linregress(at, values, alternative="greater")
    return Trend(values[0], values[-1], float(fit.slope), float(fit.pvalue))
