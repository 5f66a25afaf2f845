"""Every service is killed in turn while clients go on asking."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle

from tests.chaos.load import Fate, Load, Outcome
from tests.chaos.questions import Question, all_questions
from tests.chaos.rows import Row, Tell
from tests.chaos.stack import ChaosStack

SCENARIO = "killed services"
PROMISE = "errors only for what needs it, none lost, none wrong; whole again ≤ 2 s after its return"
WHOLE_WITHIN_S = 2.0
# What every request needs.
EVERYBODY_NEEDS = frozenset({"gateway", "orchestrator"})
# Of capacity, so that nothing is refused for any other reason than the kill.
SHARE_OF_CAPACITY = 0.3
USERS_AT_CAPACITY, CAPACITY_S = 4, 8.0
BEFORE_S, AFTER_S = 2.0, 5.0


@dataclass(frozen=True)
class Kill:
    """One service that was killed, and what clients saw of it."""

    service: str
    killed: float
    back: float
    outcomes: Sequence[Outcome]
    per_second: float

    @property
    def whole_after_s(self) -> float:
        """From its return until the first moment from which on all that was asked was answered rightly."""
        late = [each.sent - self.back for each in self.outcomes if each.fate is not Fate.RIGHT]
        return max(0.0, *late) if late else 0.0

    def stray(self) -> list[Outcome]:
        """Failures that the kill does not explain."""
        return [each for each in self.outcomes if each.fate is not Fate.RIGHT and not self._explains(each)]

    def row(self) -> Row:
        """The row of the table."""
        fates = Counter(each.fate for each in self.outcomes)
        stray = self.stray()
        lost, wrong = fates[Fate.LOST], fates[Fate.WRONG]
        measured = (
            f"{len(self.outcomes)} requests, {fates[Fate.RIGHT]} right, "
            f"{fates[Fate.REFUSED]} refused, {fates[Fate.PARTIAL]} partial, {fates[Fate.BROKEN]} connections broken, "
            f"{lost} lost, {wrong} wrong, {len(stray)} errors elsewhere; away {self.back - self.killed:.1f} s, "
            f"whole {self.whole_after_s:.2f} s after its return"
        )
        if stray:
            measured += f" ({'; '.join(sorted({str(each) for each in stray})[:3])})"
        holds = not stray and not lost and not wrong and self.whole_after_s <= WHOLE_WITHIN_S
        figures: dict[str, float | int | str] = {
            "requests": len(self.outcomes),
            "errors_elsewhere": len(stray),
            "lost": lost,
            "wrong": wrong,
            "away_s": round(self.back - self.killed, 2),
            "whole_after_s": round(self.whole_after_s, 2),
        }
        return Row(
            scenario=SCENARIO,
            done=f"SIGKILL to {self.service}, {self.per_second:.1f} requests a second",
            promise=PROMISE,
            measured=measured,
            holds=holds,
            figures=figures,
        )

    def _explains(self, outcome: Outcome) -> bool:
        needs_it = self.service in outcome.question.needs | EVERYBODY_NEEDS
        while_away = outcome.ended >= self.killed and outcome.sent <= self.back + WHOLE_WITHIN_S
        if not (needs_it and while_away):
            return False
        match outcome.fate:
            case Fate.PARTIAL:
                return outcome.services == {self.service}
            case Fate.BROKEN:
                return self.service == "gateway"
            case Fate.REFUSED:
                # It says whose fault it is, and that it may be tried again.
                return outcome.status in (502, 503, 504) and outcome.services == {self.service}
        return False


async def run(stack: ChaosStack, tell: Tell, services: Sequence[str] | None = None) -> list[Row]:
    """Kill each of ``services``: those that the supervision reports, unless they are named."""
    load = Load(stack.url, all_questions())
    await load.learn()
    tell("measuring capacity")
    await load.by_users(USERS_AT_CAPACITY, CAPACITY_S, cycle(load.questions))
    per_second = SHARE_OF_CAPACITY * len(load.outcomes) / CAPACITY_S
    rows = []
    for service in services or tuple(stack.processes()):
        tell(f"killing {service}")
        rows.append((await _kill(stack, load, service, per_second)).row())
    load.close()
    return rows


async def _kill(stack: ChaosStack, load: Load, service: str, per_second: float) -> Kill:
    load.outcomes.clear()
    async with load.going_on(per_second, _order(load.questions, service)):
        await asyncio.sleep(BEFORE_S)
        killed = time.monotonic()
        pid = await asyncio.to_thread(stack.kill, service)
        back = await asyncio.to_thread(stack.wait_until_back, service, pid)
        await asyncio.sleep(AFTER_S)
    outcomes = tuple(load.outcomes)
    await asyncio.to_thread(stack.wait_until_ready)
    return Kill(service, killed, back, outcomes, per_second)


def _order(questions: Sequence[Question], service: str) -> Iterator[Question]:
    """Those that need the service and those that do not by turns, so that both are asked often."""
    with_it = [each for each in questions if service in each.needs | EVERYBODY_NEEDS]
    others = [each for each in questions if each not in with_it]
    if not with_it or not others:
        return cycle(questions)
    return chain.from_iterable(zip(cycle(with_it), cycle(others), strict=False))
