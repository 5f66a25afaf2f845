"""Short forms of what ``make chaos`` does; those that take long are marked slow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos import (
    batch_under_kills,
    clock_jump,
    failing_stores,
    killed_services,
    network_faults,
    overload,
    poisoned_batch,
    soak,
)
from tests.chaos.rows import Row
from tests.chaos.stack import ChaosStack

pytestmark = pytest.mark.chaos


def check(rows: Sequence[Row]) -> None:
    """All hold, as far as they could be tried."""
    assert rows
    for row in rows:
        assert row.holds is not False, f"{row.done}: {row.measured}"
    if all(row.holds is None for row in rows):
        pytest.skip(rows[0].measured)


@pytest.mark.slow
async def test_a_killed_tool_is_missed_by_nobody_else_and_soon_back(stack: ChaosStack) -> None:
    check(await killed_services.run(stack, print, ["detection"]))


async def test_deadlines_hold_when_the_network_does_not(stack: ChaosStack) -> None:
    faults = ("connections reset", "nothing goes through")
    check(await network_faults.run(stack, print, ["orchestrator>detection"], faults, requests=6))


def test_a_redis_without_memory_is_named_and_loses_nothing(stack: ChaosStack) -> None:
    check(failing_stores.redis_out_of_memory(stack, print))


@pytest.mark.slow
async def test_any_service_may_be_killed_under_load(stack: ChaosStack) -> None:
    check(await killed_services.run(stack, print, ["redis", "mllm", "orchestrator", "gateway"]))


@pytest.mark.slow
async def test_a_flood_is_answered_as_far_as_can_be_and_refused_politely(stack: ChaosStack) -> None:
    check(await overload.run(stack, print, seconds=10))


@pytest.mark.slow
async def test_every_line_of_a_batch_is_answered_once_whatever_is_killed(stack: ChaosStack) -> None:
    check(await batch_under_kills.run(stack, print, lines=300, kills=6, every_s=3.0, timeout_s=600))


@pytest.mark.slow
async def test_bad_lines_of_a_batch_fail_alone(tmp_path: Path) -> None:
    with ChaosStack(tmp_path) as fresh:
        check(await poisoned_batch.run(fresh, print))


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    check(failing_stores.disk_full(tmp_path, print))


@pytest.mark.slow
async def test_a_store_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    check(await failing_stores.store_unreachable(tmp_path, print, ["silent"], requests=1))


@pytest.mark.slow
async def test_a_clock_that_is_set_back_locks_nobody_out(tmp_path: Path) -> None:
    check(await clock_jump.run(tmp_path, print, [-2 * clock_jump.HOUR_S]))


@pytest.mark.slow
async def test_nothing_grows_under_steady_load(stack: ChaosStack) -> None:
    check(await soak.run(stack, print, minutes=2))
