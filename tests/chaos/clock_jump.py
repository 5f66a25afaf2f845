"""The wall clock of the machine is set two hours ahead, then four hours back, then right."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from tests.chaos.clients import Clients, until
from tests.chaos.load import Fate, Load
from tests.chaos.questions import detect, greet, two_tools
from tests.chaos.rows import Row, Tell
from tests.chaos.stack import ChaosStack

SCENARIO = "clock jump"
HOUR_S = 3600
JUMPS_S = (2 * HOUR_S, -2 * HOUR_S, 0)
REQUESTS_PER_SECOND = 4.0
AROUND_S = 3.0
REQUESTS_PER_MINUTE = 5
# A key that has used up its minute may go on after a minute, whatever the clock says.
FREE_WITHIN_S = 61.0
PROMISE = (
    "every answer right, no process restarted; files and kept answers are there; a key that has used up its minute is "
    "let in again within a minute"
)
SOURCE = Path(__file__).with_name("shifted_clock.c")


async def run(folder: Path, tell: Tell, jumps_s: Sequence[int] = JUMPS_S) -> list[Row]:
    """One row a jump."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        reason = "there is no C compiler for the library that shifts the clock"
        return [Row(scenario=SCENARIO, done="the wall clock set", promise=PROMISE, measured=reason, holds=None)]
    os.makedirs(folder, exist_ok=True)
    library, clock = folder / "shifted_clock.so", folder / "clock"
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl"]
    await asyncio.to_thread(subprocess.run, command, check=True)
    _set(clock, 0)
    environment = {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(clock)}
    stack = ChaosStack(folder / "stack", {"gateway.keys.required": True}, environment)
    await asyncio.to_thread(stack.__enter__)
    try:
        return await _jump(stack, clock, tell, jumps_s)
    finally:
        await asyncio.to_thread(stack.__exit__, None, None, None)


async def _jump(stack: ChaosStack, clock: Path, tell: Tell, jumps_s: Sequence[int]) -> list[Row]:
    free = {"authorization": f"Bearer {_key(stack, 0)}"}
    load = Load(stack.url, (detect(), greet(), two_tools()), free)
    await load.learn()
    clients = Clients(stack.url, free)
    limited = Clients(stack.url, {"authorization": f"Bearer {_key(stack, REQUESTS_PER_MINUTE)}"})
    await asyncio.to_thread(clients.upload)
    await asyncio.to_thread(clients.detect_with_key)
    rows = []
    offset_s = 0
    for jump_s in jumps_s:
        tell(f"setting the clock to {jump_s / HOUR_S:+g} h")
        # Its minute is used up when the clock is set.
        for _ in range(REQUESTS_PER_MINUTE + 1):
            last = await asyncio.to_thread(limited.detect)
        assert last.code == "rate_limited", last
        load.outcomes.clear()
        async with load.going_on(REQUESTS_PER_SECOND, cycle(load.questions)):
            await asyncio.sleep(AROUND_S)
            _set(clock, jump_s)
            await asyncio.sleep(AROUND_S)
        free_s = await asyncio.to_thread(until, limited.detect, 200, 2 * FREE_WITHIN_S)
        rows.append(_row(stack, load, clients, jump_s - offset_s, free_s))
        offset_s = jump_s
    load.close()
    return rows


def _row(stack: ChaosStack, load: Load, clients: Clients, step_s: int, free_s: float) -> Row:
    fates = Counter(each.fate for each in load.outcomes)
    failures = [each for each in load.outcomes if each.fate is not Fate.RIGHT]
    damage = clients.damage()
    restarts = stack.restarts()
    measured = (
        f"{fates[Fate.RIGHT]} of {len(load.outcomes)} right; {restarts} restarts; {len(damage)} lost; "
        f"the key let in after {free_s:.1f} s"
    )
    if failures or damage:
        measured += f" ({'; '.join([*map(str, failures[:3]), *damage[:3]])})"
    return Row(
        scenario=SCENARIO,
        done=f"the wall clock set {abs(step_s) / HOUR_S:g} h {'ahead' if step_s > 0 else 'back'} under load",
        promise=PROMISE,
        measured=measured,
        holds=not failures and not damage and not restarts and free_s <= FREE_WITHIN_S,
        figures={
            "requests": len(load.outcomes),
            "failures": len(failures),
            "lost": len(damage),
            "restarts": restarts,
            "key_free_after_s": round(free_s, 2),
        },
    )


def _set(clock: Path, offset_s: int) -> None:
    """For every process of the stack at once; in place, because they have the file mapped."""
    with clock.open("r+b" if clock.exists() else "wb") as file:
        file.write(struct.pack("q", offset_s * 1_000_000_000))


def _key(stack: ChaosStack, requests_per_minute: int) -> str:
    """A new API key of the stack; 0 a minute: no limit."""
    options = ["--requests-per-minute", str(requests_per_minute), "--concurrent-requests", "0"]
    command = [sys.executable, "-m", "superlink", "keys", "create", "chaos", *options]
    profile = ["--profile", str(stack.folder / "tiny.yaml"), "--state", str(stack.state.path)]
    made = subprocess.run([*command, *profile], capture_output=True, text=True, check=True)
    return made.stdout.strip()
