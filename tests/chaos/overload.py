"""Five times as many requests as the stack can answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import cycle

from tests.chaos.load import Fate, Load, Outcome
from tests.chaos.process_figures import MIB, held_by
from tests.chaos.questions import detect
from tests.chaos.rows import Row, Tell, percentile
from tests.chaos.stack import ChaosStack

SCENARIO = "overload"
TIMES_CAPACITY = 5
# Enough to keep every worker busy, few enough that nothing is refused.
USERS_AT_CAPACITY = 12
UNLOADED_REQUESTS = 100
# The queue has filled by then.
WARM_UP_S = 3.0
GOODPUT = 0.9
# Buffers that grew once.
MEMORY_NOISE_BYTES = 24 * MIB
PROMISE = (
    "accepted: p99 ≤ 2 x unloaded p99 + queue budget; the rest: 429 or 503 with Retry-After; "
    f"goodput ≥ {GOODPUT:.0%} of capacity; no memory growth"
)


async def run(stack: ChaosStack, tell: Tell, seconds: float = 30.0) -> list[Row]:
    """One row."""
    load = Load(stack.url, (detect(),))
    await load.learn()
    order = cycle(load.questions)
    tell("measuring a stack without load")
    unloaded = [(await load.ask(next(order))).seconds for _ in range(UNLOADED_REQUESTS)]
    tell("measuring its capacity")
    await load.by_users(USERS_AT_CAPACITY, WARM_UP_S, order)
    began = time.monotonic()
    capacity = _right_per_second(await load.by_users(USERS_AT_CAPACITY, seconds / 2, order), began, seconds / 2)
    tell(f"{TIMES_CAPACITY} x {capacity:.0f} requests a second")
    began = time.monotonic()
    flood = asyncio.create_task(load.at_rate(TIMES_CAPACITY * capacity, WARM_UP_S + seconds, order))
    await asyncio.sleep(WARM_UP_S + seconds / 3)
    held = held_by(stack)
    await asyncio.sleep(2 * seconds / 3 - 0.5)
    growth = {name: now.resident_bytes - held[name].resident_bytes for name, now in held_by(stack).items()}
    outcomes = [each for each in await flood if each.sent >= began + WARM_UP_S]
    load.close()
    goodput = _right_per_second(outcomes, began + WARM_UP_S, seconds)
    return [_row(stack, unloaded, capacity, goodput, outcomes, growth)]


def _right_per_second(outcomes: list[Outcome], began: float, seconds: float) -> float:
    return sum(each.fate is Fate.RIGHT and began <= each.ended <= began + seconds for each in outcomes) / seconds


def _row(
    stack: ChaosStack,
    unloaded: list[float],
    capacity: float,
    goodput: float,
    outcomes: list[Outcome],
    growth: dict[str, int],
) -> Row:
    accepted = [each.seconds for each in outcomes if each.fate is Fate.RIGHT]
    unloaded_p99, accepted_p99 = percentile(unloaded, 99), percentile(accepted, 99)
    bound = 2 * unloaded_p99 + stack.profile.orchestrator.queue_budget_s
    rest = [each for each in outcomes if each.fate is not Fate.RIGHT]
    rude = [each for each in rest if each.status not in (429, 503) or each.retry_after_s is None]
    codes = Counter(each.code or each.fate for each in rest)
    grown, most = max(growth.items(), key=lambda item: item[1])
    refused_ms = percentile([each.seconds for each in rest], 50) * 1000
    return Row(
        scenario=SCENARIO,
        done=f"{TIMES_CAPACITY} x {capacity:.0f} requests a second to /v1/detect",
        promise=PROMISE,
        measured=(
            f"accepted p99 {accepted_p99:.2f} s (unloaded {unloaded_p99:.3f} s, bound {bound:.2f} s); "
            f"{len(rest)} refused ({', '.join(f'{count} {code}' for code, count in codes.most_common(4))}; "
            f"median {refused_ms:.0f} ms), {len(rude)} of them otherwise; "
            f"goodput {goodput:.1f} of {capacity:.1f} a second ({goodput / capacity:.0%}); "
            f"most grown: {grown} by {most / MIB:.0f} MiB"
            + (f" ({'; '.join(sorted({str(each) for each in rude})[:3])})" if rude else "")
        ),
        holds=accepted_p99 <= bound and not rude and goodput >= GOODPUT * capacity and most <= MEMORY_NOISE_BYTES,
        figures={
            "capacity_per_s": round(capacity, 1),
            "goodput_per_s": round(goodput, 1),
            "goodput_share": round(goodput / capacity, 3),
            "unloaded_p99_s": round(unloaded_p99, 3),
            "accepted_p99_s": round(accepted_p99, 3),
            "bound_s": round(bound, 3),
            "refused": len(rest),
            "refused_otherwise": len(rude),
            "most_grown_mib": round(most / MIB, 1),
        },
    )
