"""How long one user waits: requests one after another over a scene set, and where the time goes.

Every request shows an image that no service has seen, so that no cache helps, except where repeated looks at one image
are what is measured.
"""

from __future__ import annotations

import io
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
from PIL import Image
from pydantic import BaseModel

from services.evaluation.scenes_set import Prompt, SceneSet
from superlink.client import Client
from superlink.results import Timing

WARM_UP_REQUESTS = 5
_ONE_TOOL_TASKS = ("detect", "detect_several", "detect_absent", "refer")
_OBSERVED_TASKS = ("count", "presence")


class PartFigures(BaseModel):
    """One part of the way of a request, in milliseconds."""

    p50_ms: float
    mean_ms: float


class EndpointFigures(BaseModel):
    """What a client waits for one kind of request, in milliseconds."""

    requests: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    # "mllm compute", "wire detection", "client": what the services report, and what only the client sees.
    parts: dict[str, PartFigures]


class LatencyReport(BaseModel):
    """What the latency benchmark writes."""

    endpoints: dict[str, EndpointFigures]
    concurrency: int = 1
    cores: int
    seconds: float


@dataclass(frozen=True)
class _Request:
    image: bytes
    prompt: Prompt


_Send = Callable[[Client, _Request], Sequence[Timing]]


def measure_latency(
    client: Client, scene_set: SceneSet, requests: int, report: Callable[[str, int], None] | None = None
) -> LatencyReport:
    """Send ``requests`` of every kind. ``report`` hears the kind and how many of it are done.

    Raises SuperlinkError when a request fails: a failed one has no latency.
    """
    start = time.perf_counter()
    shown = [prompt for prompt in scene_set.prompts if prompt.image_id is not None]
    one_tool = [prompt for prompt in shown if prompt.task in _ONE_TOOL_TASKS]
    observed = [prompt for prompt in shown if prompt.task in _OBSERVED_TASKS]
    kinds: dict[str, tuple[_Send, Sequence[Prompt], bool]] = {
        "detect": (_detect, one_tool, True),
        "detect_same_image": (_detect, one_tool[:1], False),
        "chat_one_tool": (_chat, one_tool, True),
        "chat_with_observation": (_chat, observed, True),
    }
    endpoints = {}
    for kind, (send, prompts, fresh) in kinds.items():
        if prompts:
            prepared = list(_prepared(scene_set, prompts, requests + WARM_UP_REQUESTS, fresh, f"{kind} {start}"))
            endpoints[kind] = _measure(client, send, prepared, kind, report)
    return LatencyReport(endpoints=endpoints, cores=os.cpu_count() or 1, seconds=round(time.perf_counter() - start, 1))


def _prepared(scene_set: SceneSet, prompts: Sequence[Prompt], count: int, fresh: bool, salt: str) -> Iterator[_Request]:
    """Requests with encoded images; ``fresh`` ones differ in a few corner pixels from all others."""
    rng = np.random.default_rng(list(salt.encode()))
    for prompt in islice(cycle(prompts), count):
        assert prompt.image_id is not None  # noqa: S101
        content = scene_set.image_file(prompt.image_id).read_bytes()
        if fresh:
            pixels = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
            pixels[0, :4] = rng.integers(0, 256, (4, 3))
            encoded = io.BytesIO()
            Image.fromarray(pixels).save(encoded, "PNG")
            content = encoded.getvalue()
        yield _Request(content, prompt)


def _measure(
    client: Client,
    send: _Send,
    prepared: Sequence[_Request],
    kind: str,
    report: Callable[[str, int], None] | None,
) -> EndpointFigures:
    waits: list[float] = []
    parts: dict[str, list[float]] = defaultdict(list)
    for number, request in enumerate(prepared):
        start = time.perf_counter()
        timings = send(client, request)
        wait_ms = 1000 * (time.perf_counter() - start)
        if number < WARM_UP_REQUESTS:
            continue
        waits.append(wait_ms)
        for timing in timings:
            parts[f"{timing.service} {timing.phase}"].append(timing.milliseconds)
        inside = sum(
            timing.milliseconds for timing in timings if (timing.service, timing.phase) == ("gateway", "total")
        )
        parts["client"].append(wait_ms - inside)
        if report:
            report(kind, len(waits))
    p50, p90, p99 = np.percentile(waits, [50, 90, 99])
    return EndpointFigures(
        requests=len(waits),
        p50_ms=round(float(p50), 2),
        p90_ms=round(float(p90), 2),
        p99_ms=round(float(p99), 2),
        mean_ms=round(float(np.mean(waits)), 2),
        parts={
            name: PartFigures(p50_ms=round(float(np.median(times)), 2), mean_ms=round(float(np.mean(times)), 2))
            for name, times in sorted(parts.items())
        },
    )


def _detect(client: Client, request: _Request) -> Sequence[Timing]:
    return client.detect(request.image, [phrase.phrase for phrase in request.prompt.phrases]).timings


def _chat(client: Client, request: _Request) -> Sequence[Timing]:
    return client.chat(request.image, request.prompt.text).timings
