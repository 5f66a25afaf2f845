"""All scenarios, each with a stack of its own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

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
from tests.chaos.rows import Row, Tell
from tests.chaos.stack import ChaosStack


@dataclass(frozen=True)
class Stage:
    """Where a scenario plays."""

    # For its stacks; nothing is in it yet.
    folder: Path
    tell: Tell
    soak_minutes: float = soak.MINUTES


Play: TypeAlias = Coroutine[None, None, list[Row]]
Scenario: TypeAlias = Callable[[Stage], Play]
OnStack: TypeAlias = Callable[[ChaosStack, Tell], Play]


def _with_stack(play: OnStack) -> Scenario:
    async def scenario(stage: Stage) -> list[Row]:
        stage.tell("starting a stack")
        with ChaosStack(stage.folder) as stack:
            return await play(stack, stage.tell)

    return scenario


async def _soak(stage: Stage) -> list[Row]:
    stage.tell("starting a stack")
    with ChaosStack(stage.folder) as stack:
        return await soak.run(stack, stage.tell, stage.soak_minutes)


async def _disk_full(stage: Stage) -> list[Row]:
    return failing_stores.disk_full(stage.folder, stage.tell)


async def _store_unreachable(stage: Stage) -> list[Row]:
    return await failing_stores.store_unreachable(stage.folder, stage.tell)


async def _redis_out_of_memory(stack: ChaosStack, tell: Tell) -> list[Row]:
    return failing_stores.redis_out_of_memory(stack, tell)


async def _clock_jump(stage: Stage) -> list[Row]:
    return await clock_jump.run(stage.folder, stage.tell)


SCENARIOS: Mapping[str, Scenario] = {
    "kills": _with_stack(killed_services.run),
    "network": _with_stack(network_faults.run),
    "overload": _with_stack(overload.run),
    "disk": _disk_full,
    "store": _store_unreachable,
    "redis": _with_stack(_redis_out_of_memory),
    "clock": _clock_jump,
    "poison": _with_stack(poisoned_batch.run),
    "batch": _with_stack(batch_under_kills.run),
    "soak": _soak,
}
