"""Load on a stack, and what became of every request of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from tests.chaos.plain_http import ConnectionBroken, Connections, Reply
from tests.chaos.questions import Essence, Question, same

# Longer than the deadline of any request: the gateway answers before.
PATIENCE_S = 75.0


class Fate(StrEnum):
    """What became of a request."""

    RIGHT = "right"
    # A part of the answer failed and says so; the rest is right.
    PARTIAL = "partial"
    WRONG = "wrong"
    # An error with its code.
    REFUSED = "refused"
    # The client's connection failed, and so it knows.
    BROKEN = "broken"
    # Nothing came back at all.
    LOST = "lost"


@dataclass(frozen=True)
class Outcome:
    """One request; times by ``time.monotonic()``."""

    question: Question
    fate: Fate
    sent: float
    ended: float
    status: int = 0
    # The problem's code, or what was wrong with the connection.
    code: str = ""
    # Whose fault it is, as the problem says; of a partial answer, those that failed.
    services: frozenset[str] = frozenset()
    retry_after_s: float | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.sent

    def __str__(self) -> str:
        return f"{self.question.name}: {self.fate} {self.status or ''} {self.code} {'/'.join(sorted(self.services))}"


class Load:
    """Sends questions whose answers are known to one gateway."""

    def __init__(self, url: str, questions: Iterable[Question], headers: Mapping[str, str] | None = None) -> None:
        """``headers`` go along with every request."""
        self.questions = tuple(questions)
        self._headers = headers or {}
        self.outcomes: list[Outcome] = []
        self._connections = Connections(url)
        # The right answers, by question.
        self.known: dict[str, Essence] = {}

    async def learn(self) -> None:
        """Ask every question once, of a stack that is whole."""
        for question in self.questions:
            reply = await self._connections.send(question.encode(self._headers))
            assert reply.status == 200, f"{question.name}: {reply.status} {reply.body[:500]!r}"
            self.known[question.name] = question.read(reply.json())

    async def ask(self, question: Question) -> Outcome:
        """Send one request and note what became of it."""
        sent = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                reply = await self._connections.send(question.encode(self._headers))
        except TimeoutError:
            outcome = Outcome(question, Fate.LOST, sent, time.monotonic())
        except ConnectionBroken as error:
            outcome = Outcome(question, Fate.BROKEN, sent, time.monotonic(), code=str(error))
        else:
            outcome = self._judge(question, reply, sent)
        self.outcomes.append(outcome)
        return outcome

    def close(self) -> None:
        self._connections.close()

    def _judge(self, question: Question, reply: Reply, sent: float) -> Outcome:
        ended = time.monotonic()
        try:
            document = reply.json()
            if reply.status == 200:
                answer = question.read(document)
                right = same(self.known[question.name], answer)
                fate = Fate.WRONG if not right else Fate.PARTIAL if answer.failed else Fate.RIGHT
                return Outcome(question, fate, sent, ended, 200, services=answer.failed)
            code, service = document["code"], document.get("service") or ""
        except (json.JSONDecodeError, KeyError, TypeError):
            # Neither an answer nor an error of ours.
            return Outcome(question, Fate.WRONG, sent, ended, reply.status, code=repr(reply.body[:80]))
        after = reply.headers.get("retry-after")
        return Outcome(
            question,
            Fate.REFUSED,
            sent,
            ended,
            reply.status,
            code,
            frozenset({service}) if service else frozenset(),
            float(after) if after is not None else None,
        )

    async def at_rate(self, per_second: float, seconds: float, order: Iterator[Question]) -> list[Outcome]:
        """Send that many requests a second, whatever becomes of them, and wait for the last one."""
        begin = time.monotonic()
        tasks = []
        for number in range(round(per_second * seconds)):
            await asyncio.sleep(max(0.0, begin + number / per_second - time.monotonic()))
            tasks.append(asyncio.create_task(self.ask(next(order))))
        return list(await asyncio.gather(*tasks))

    async def by_users(self, users: int, seconds: float, order: Iterator[Question]) -> list[Outcome]:
        """Let ``users`` ask one question after the other."""
        end = time.monotonic() + seconds

        async def user() -> list[Outcome]:
            outcomes = []
            while time.monotonic() < end:
                outcomes.append(await self.ask(next(order)))
            return outcomes

        return [outcome for part in await asyncio.gather(*(user() for _ in range(users))) for outcome in part]

    @asynccontextmanager
    async def going_on(self, per_second: float, order: Iterator[Question]) -> AsyncIterator[None]:
        """Load in the background of the block; at its end all requests have come to theirs."""
        task = asyncio.create_task(self._until_cancelled(per_second, order))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(*await task)

    async def _until_cancelled(self, per_second: float, order: Iterator[Question]) -> list[asyncio.Task[Outcome]]:
        tasks: list[asyncio.Task[Outcome]] = []
        begin = time.monotonic()
        try:
            while True:
                tasks.append(asyncio.create_task(self.ask(next(order))))
                await asyncio.sleep(max(0.0, begin + len(tasks) / per_second - time.monotonic()))
        except asyncio.CancelledError:
            return tasks
