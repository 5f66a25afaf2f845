"""Requests inside the engine, from arrival to the last event."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from contextvars import Context, copy_context
from dataclasses import dataclass, field

from torch import Tensor

from services.mllm.batch import AnswerEvent, Row
from services.mllm.conversation import Rendered
from services.mllm.json_grammar import JsonGrammar
from services.mllm.region_encoder import RegionView
from services.mllm.sampling import Sampling
from superlink.errors import SuperlinkError


@dataclass(frozen=True)
class ImageInput:
    """An image of a request: its features if they are known, else the pixels to make them from."""

    # Content digest and tile budget; the key of the feature cache.
    key: str
    # [tiles, 3, size, size]; None when ``features`` are given.
    pixels: Tensor | None
    # [image tokens, hidden].
    features: Tensor | None = None


@dataclass(frozen=True)
class RegionInput:
    """A visual prompt of a request: its embedding if it is known, else what to make it from."""

    # Of the image, its tile and the region; the key of the feature cache.
    key: str
    # [3, size, size] of the tile that it is looked at on; None, like the view, when ``features`` are given.
    pixels: Tensor | None
    view: RegionView | None
    # [1, hidden].
    features: Tensor | None = None


@dataclass(frozen=True)
class Linked:
    """The answer of the fast path."""

    # [groups, (queries,) width] on the CPU.
    embeddings: Tensor
    queue_s: float
    compute_s: float


@dataclass(frozen=True)
class Times:
    """Where the time of one generated answer went."""

    queue_s: float
    compute_s: float


@dataclass(eq=False)
class Job(ABC):
    """A request. Times are seconds of ``time.monotonic()``."""

    rendered: Rendered
    images: tuple[ImageInput, ...]
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    # 0 while it waits.
    started: float = 0.0
    # The request's: what is logged and recorded for it runs in copies of it, since two threads do so.
    context: Context = field(default_factory=copy_context)
    # Nobody waits for it any more.
    cancelled: bool = False
    regions: tuple[RegionInput, ...] = ()

    @abstractmethod
    def fail(self, error: SuperlinkError) -> None:
        """End the request with ``error``."""


@dataclass(eq=False)
class LinkJob(Job):
    """A request of the fast path."""

    decoder: str = ""
    done: asyncio.Future[Linked] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def answer(self, embeddings: Tensor) -> None:
        """End the request with its link embeddings."""
        if not self.done.done():
            self.done.set_result(Linked(embeddings, self.started - self.arrived, time.monotonic() - self.started))

    def fail(self, error: SuperlinkError) -> None:
        """End the request with ``error``."""
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(eq=False)
class GenerateJob(Job):
    """A request that the model answers in its own words."""

    sampling: Sampling = field(default_factory=Sampling)
    # What the text is held to.
    grammar: JsonGrammar | None = None
    events: asyncio.Queue[list[AnswerEvent] | SuperlinkError] = field(default_factory=asyncio.Queue)
    # Its place in the running batch, while it has one.
    row: Row | None = None

    def fail(self, error: SuperlinkError) -> None:
        """End the request with ``error``."""
        self.events.put_nowait(error)
