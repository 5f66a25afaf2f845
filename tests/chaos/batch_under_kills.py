"""A large batch while processes are killed at random."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openai.types import Batch

from tests.chaos.batch_results import Results, client_of, half_written, line, start_batch, wait_for
from tests.chaos.load import Load
from tests.chaos.questions import Essence, data_url, detect, same, small_image
from tests.chaos.rows import Row, Tell
from tests.chaos.stack import ChaosStack

SCENARIO = "batch under kills"
LINES = 5000
KILLS = 20
IMAGES = 16
ENDPOINT = "/v1/detect"
# What is killed: workers, Celery's processes, and Redis.
SERVICES = ("mllm", "detection", "batches", "redis")
# One of those that work on shards, below Celery's own process.
POOL_PROCESS = "one of Celery's pool"
PROMISE = "every line exactly once in output or errors, every answer right, no file half written"


async def run(
    stack: ChaosStack,
    tell: Tell,
    lines: int = LINES,
    kills: int = KILLS,
    every_s: float = 12.0,
    timeout_s: float = 3600,
) -> list[Row]:
    """One row; something is killed about ``every_s`` seconds after the last, so many times."""
    questions = [detect(f"image {number}", small_image(number)) for number in range(IMAGES)]
    load = Load(stack.url, questions)
    await load.learn()
    load.close()
    tell(f"{lines} lines")
    return [await asyncio.to_thread(_row, stack, load.known, tell, lines, kills, every_s, timeout_s)]


def _row(
    stack: ChaosStack, known: dict[str, Essence], tell: Tell, lines: int, kills: int, every_s: float, timeout_s: float
) -> Row:
    bodies = [{"image": data_url(small_image(number)), "categories": ["dog"]} for number in range(IMAGES)]
    began = time.monotonic()
    killed: Counter[str] = Counter()
    with client_of(stack) as client:
        batch = start_batch(
            client, (line(f"line {each}", ENDPOINT, bodies[each % IMAGES]) for each in range(lines)), ENDPOINT
        )

        def watch(now: Batch) -> None:
            counts = now.request_counts
            done = counts.completed + counts.failed if counts is not None else 0
            tell(f"{now.status}, {done} of {lines} lines, {killed.total()} kills")

        with _killing(stack, killed, kills, every_s):
            results = wait_for(client, batch, timeout_s, watch)
        stack.wait_until_ready()
    seconds = time.monotonic() - began
    wrong = _wrong(results, known)
    return _judged(stack, results, killed, wrong, lines, kills, seconds)


def _judged(
    stack: ChaosStack, results: Results, killed: Counter[str], wrong: int, lines: int, kills: int, seconds: float
) -> Row:
    ids = results.ids()
    missing = sum(f"line {each}" not in ids for each in range(lines))
    doubled = sum(count > 1 for count in ids.values())
    counts = results.batch.request_counts
    assert counts is not None
    told = (counts.total, counts.completed, counts.failed) == (lines, len(results.answered), len(results.errors))
    broken = half_written(stack)
    codes = Counter(str((row["error"] or {}).get("code")) for row in results.errors)
    who = ", ".join(f"{count} x {name}" for name, count in sorted(killed.items()))
    measured = (
        f"{results.batch.status} in {seconds:.0f} s; {len(results.answered)} answered, {len(results.errors)} errors"
        f"{f' ({dict(codes)})' if codes else ''}; {missing} missing, {doubled} doubled, {wrong} wrong, "
        f"{len(broken)} files half written; counts {'true' if told else 'untrue'}"
    )
    return Row(
        scenario=SCENARIO,
        done=f"{lines} lines to {ENDPOINT}, {killed.total()} times SIGKILL: {who}",
        promise=PROMISE,
        measured=measured,
        holds=results.batch.status == "completed"
        and not (missing or doubled or wrong or broken)
        and told
        and killed.total() >= kills,
        figures={
            "lines": lines,
            "kills": killed.total(),
            "answered": len(results.answered),
            "errors": len(results.errors),
            "missing": missing,
            "doubled": doubled,
            "wrong": wrong,
            "half_written": len(broken),
            "seconds": round(seconds),
        },
    )


def _wrong(results: Results, known: dict[str, Essence]) -> int:
    """Answers to another question than the line's."""
    reading = detect().read
    wrong = 0
    for row in results.answered:
        number = int(row["custom_id"].removeprefix("line ")) % IMAGES
        wrong += not same(known[f"image {number}"], reading(row["response"]["body"]))
    return wrong


@contextmanager
def _killing(stack: ChaosStack, killed: Counter[str], kills: int, every_s: float) -> Iterator[None]:
    """Kill at random for the block, in a thread of its own."""
    over = threading.Event()
    thread = threading.Thread(target=_kill_until, args=(stack, killed, kills, every_s, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _kill_until(stack: ChaosStack, killed: Counter[str], kills: int, every_s: float, over: threading.Event) -> None:
    # All in turn and in an order by chance, so that each is killed as often.
    chance = random.Random(5)  # noqa: S311 (no secret)
    while killed.total() < kills:
        for name in chance.sample((*SERVICES, POOL_PROCESS), len(SERVICES) + 1):
            if killed.total() == kills or over.wait(every_s * chance.uniform(0.5, 1.5)):
                return
            with suppress(KeyError, AssertionError, ProcessLookupError, IndexError):
                # One that is being started anew cannot be killed.
                if name == POOL_PROCESS:
                    os.kill(chance.choice(_children(stack.processes()["batches"].pid)), signal.SIGKILL)
                else:
                    stack.kill(name)
                killed[name] += 1


def _children(pid: int | None) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
