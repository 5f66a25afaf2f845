"""The network between services is slow, loses packets, resets connections, or swallows all."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from pathlib import Path

import httpx
import yaml

from superlink.ports import free_port_overrides
from superlink.profile import Profile
from superlink.stack.local_stack import profile_with
from tests.chaos.load import Fate, Load
from tests.chaos.questions import detect, greet, two_tools
from tests.chaos.rows import Row, Tell
from tests.chaos.stack import ChaosStack
from tests.chaos.tcp_proxy import WHOLE, Fault, TcpProxy, proxy_to

SCENARIO = "network faults"
FAULTS: Mapping[str, Fault] = {
    "0.1 s of latency each way": Fault(latency_s=0.1),
    "5 s of latency each way": Fault(latency_s=5.0),
    "a fifth of all packets lost": Fault(loss=0.2),
    "connections reset": Fault(reset=True),
    "nothing goes through": Fault(blackhole=True),
}
LINKS = ("gateway>orchestrator", "orchestrator>mllm", "orchestrator>detection")
DEADLINE_S = 2.0
# Of the deadline.
TOLERANCE = 0.1
WHOLE_WITHIN_S = 2.0
START_TIMEOUT_S = 60.0
PROMISE = (
    f"an answer or an error at {DEADLINE_S:g} s + {TOLERANCE:.0%} at the latest, none wrong; "
    f"whole ≤ {WHOLE_WITHIN_S:g} s after the fault"
)


async def run(
    stack: ChaosStack,
    tell: Tell,
    links: Sequence[str] = LINKS,
    faults: Sequence[str] = tuple(FAULTS),
    requests: int = 12,
) -> list[Row]:
    """Every fault on every link; ``requests`` are sent under each, four at a time."""
    rows = []
    async with _edge_behind_proxies(stack) as (url, proxies):
        load = Load(url, (detect(), greet(), two_tools()), {"x-request-timeout-s": f"{DEADLINE_S:g}"})
        await load.learn()
        for link in links:
            for name in faults:
                tell(f"{link}: {name}")
                rows.append(await _under(load, proxies[link], link, name, requests))
        load.close()
    return rows


async def _under(load: Load, proxy: TcpProxy, link: str, name: str, requests: int) -> Row:
    load.outcomes.clear()
    order = cycle(load.questions)
    proxy.set(FAULTS[name])
    gate = asyncio.Semaphore(4)

    async def ask() -> None:
        async with gate:
            await load.ask(next(order))

    await asyncio.gather(*(ask() for _ in range(requests)))
    outcomes = tuple(load.outcomes)
    proxy.set(WHOLE)
    whole_after_s = await _whole_after(load)
    slowest_s = max(each.seconds for each in outcomes)
    fates = Counter(each.fate for each in outcomes)
    bad = [each for each in outcomes if each.fate in (Fate.WRONG, Fate.LOST, Fate.BROKEN)]
    within = DEADLINE_S * (1 + TOLERANCE)
    statuses = Counter(str(each.status) for each in outcomes if each.fate is Fate.REFUSED)
    refused = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())) or "none"
    return Row(
        scenario=SCENARIO,
        done=f"{link}: {name}",
        promise=PROMISE,
        measured=(
            f"{len(outcomes)} requests, slowest {slowest_s:.2f} s; {fates[Fate.RIGHT]} right, "
            f"{fates[Fate.PARTIAL]} partial, refused: {refused}; {len(bad)} wrong, lost or broken; "
            f"whole {whole_after_s:.2f} s after it"
        ),
        holds=slowest_s <= within and not bad and whole_after_s <= WHOLE_WITHIN_S,
        figures={
            "slowest_s": round(slowest_s, 3),
            "deadline_s": DEADLINE_S,
            "right": fates[Fate.RIGHT],
            "partial": fates[Fate.PARTIAL],
            "refused": fates[Fate.REFUSED],
            "bad": len(bad),
            "whole_after_s": round(whole_after_s, 2),
        },
    )


async def _whole_after(load: Load) -> float:
    """Seconds from now until one of each question that was sent then was answered rightly."""
    healed = time.monotonic()
    while time.monotonic() - healed < 30.0:
        sent = time.monotonic() - healed
        outcomes = await asyncio.gather(*(load.ask(question) for question in load.questions))
        if all(each.fate is Fate.RIGHT for each in outcomes):
            return sent
        await asyncio.sleep(0.05)
    return float("inf")


@asynccontextmanager
async def _edge_behind_proxies(stack: ChaosStack) -> AsyncIterator[tuple[str, Mapping[str, TcpProxy]]]:
    """A second gateway and a second orchestrator for the workers of ``stack``, with a proxy on every way to another."""
    own = profile_with(stack.profile, free_port_overrides(stack.profile))
    async with AsyncExitStack() as opened:
        ways = {"mllm": "mllm.address", **{name: f"decoders.{name}.address" for name in own.decoders}}
        targets = {"mllm": stack.profile.mllm, **stack.profile.decoders}
        proxies: dict[str, TcpProxy] = {}
        dialled: dict[str, object] = {}
        for name, key in ways.items():
            proxy = proxies[f"orchestrator>{name}"] = await opened.enter_async_context(proxy_to(targets[name].address))
            dialled[key] = proxy.address
        behind = profile_with(own, dialled)
        proxy = proxies["gateway>orchestrator"] = await opened.enter_async_context(proxy_to(own.orchestrator.address))
        before = profile_with(own, {"orchestrator.address": proxy.address})
        for module, profile in (("orchestrator", behind), ("gateway", before)):
            opened.callback(_end, _start(module, profile, stack.folder))
        await _ready(own.gateway.url)
        yield own.gateway.url, proxies


def _start(module: str, profile: Profile, folder: Path) -> subprocess.Popen[bytes]:
    file = folder / f"{module}_behind_proxies.yaml"
    file.write_text(yaml.safe_dump(profile.model_dump(mode="json")), encoding="utf-8")
    with file.with_suffix(".log").open("wb") as log:
        command = [sys.executable, "-m", module, "--profile", str(file)]
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"})


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


async def _ready(url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    async with httpx.AsyncClient() as client:
        while True:
            try:
                response = await client.get(f"{url}/readyz", timeout=5.0)
                if response.is_success:
                    return
                reason = response.text
            except httpx.HTTPError as error:
                reason = repr(error)
            if time.monotonic() > deadline:
                raise TimeoutError(f"the edge behind proxies is not ready: {reason}")
            await asyncio.sleep(0.1)
