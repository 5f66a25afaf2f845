"""What the workers say of themselves: routes, adapter versions, readiness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

from orchestrator.deadline import Deadline, out_of_time
from orchestrator.replicas import Standing
from orchestrator.workers import Decoder, Mllm
from superlink.errors import SuperlinkError
from superlink.v1 import decoder_pb2, mllm_pb2, orchestrator_pb2

# A worker that does not describe itself within this time counts as not ready.
DESCRIBE_TIMEOUT_S = 1.0
# Descriptions younger than this are not asked for again.
FRESH_FOR_S = 0.5
# Routing tokens of tools that make images: from words alone, and from an image.
DRAWING_TOKEN = "[GEN]"  # noqa: S105
EDITING_TOKEN = "[EDIT]"  # noqa: S105


@dataclass(frozen=True)
class ToolRoute:
    """Where the groups of one routing token go."""

    token: str
    decoder: str
    # That of the MLLM's projection head; the decoder refuses another one than its own.
    adapter_version: str
    input_mode: decoder_pb2.InputMode.ValueType
    # Groups that one call may hold; 0 when the decoder sets no limit.
    max_groups: int
    # Probability from which a result counts as there; 0 as long as the decoder has not been heard of.
    score_threshold: float
    # Whether a group may have a region; not as long as the decoder has not been heard of.
    takes_regions: bool = False
    # The route of the same decoder whose groups name keypoints of what the groups before them mean; "" for none.
    keypoint_route: str = ""

    @property
    def makes_images(self) -> bool:
        """Whether the tool answers with images rather than with what it finds in one."""
        return self.token in (DRAWING_TOKEN, EDITING_TOKEN)

    @property
    def needs_image(self) -> bool:
        """Whether the tool looks at an image."""
        return self.token != DRAWING_TOKEN


@dataclass(frozen=True)
class Snapshot:
    """The last known descriptions; a worker that is away keeps the one it gave last."""

    mllm: mllm_pb2.DescribeMllmResponse | None = None
    decoders: Mapping[str, decoder_pb2.DescribeResponse] = field(default_factory=dict)
    services: tuple[orchestrator_pb2.ServiceState, ...] = ()
    routes: Mapping[str, ToolRoute] = field(default_factory=dict)

    def route_to(self, decoder: str, token: str = "") -> ToolRoute:
        """The route ``token`` of ``decoder``, or its first one. Raises SuperlinkError when nothing leads there."""
        for route in self.routes.values():
            if route.decoder == decoder and token in ("", route.token):
                return route
        for service in self.services:
            if service.name in ("mllm", decoder) and not service.ready:
                raise SuperlinkError(
                    "unavailable",
                    f"The {service.name} service is not ready: {service.reason}",
                    status=grpc.StatusCode.UNAVAILABLE,
                    service=service.name,
                )
        what = f"{decoder} tool that answers {token}" if token else f"{decoder} tool"
        raise SuperlinkError(
            "unknown_tool",
            f"No {what} is deployed. Name its worker under 'decoders' in the profile.",
            status=grpc.StatusCode.UNIMPLEMENTED,
            service="orchestrator",
        )


class Catalogue:
    """Asks the workers to describe themselves, and remembers what they said.

    Requests never wait for a description that is known: it is renewed behind them.
    """

    def __init__(self, mllm: Mllm, decoders: Mapping[str, Decoder]) -> None:
        """``decoders`` by their names in the profile."""
        self._mllm = mllm
        self._decoders = decoders
        self._snapshot = Snapshot()
        self._refreshed_at = -FRESH_FOR_S
        self._refresh: asyncio.Task[None] | None = None

    async def known(self, deadline: Deadline) -> Snapshot:
        """The last known descriptions; waits only as long as the MLLM has never been heard of.

        A decoder that has not been heard of yet is known by what the MLLM says of its route. Raises SuperlinkError when
        ``deadline`` is too near to wait.
        """
        if not self._is_fresh():
            refresh = self._start_refresh()
            if self._snapshot.mllm is None:
                try:
                    await asyncio.wait_for(asyncio.shield(refresh), deadline.for_hop())
                except TimeoutError:
                    raise out_of_time() from None
        return self._snapshot

    async def current(self) -> Snapshot:
        """Descriptions and readiness that are at most ``FRESH_FOR_S`` old."""
        if not self._is_fresh():
            await asyncio.shield(self._start_refresh())
        return self._snapshot

    async def close(self) -> None:
        """Stop asking."""
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.gather(self._refresh, return_exceptions=True)

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._refreshed_at < FRESH_FOR_S

    def _start_refresh(self) -> asyncio.Task[None]:
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.create_task(self._ask_everyone())
        return self._refresh

    async def _ask_everyone(self) -> None:
        mllm, *decoders = await asyncio.gather(
            _attempt(self._mllm), *(_attempt(decoder) for decoder in self._decoders.values())
        )
        known_mllm = mllm if isinstance(mllm, mllm_pb2.DescribeMllmResponse) else self._snapshot.mllm
        known_decoders = dict(self._snapshot.decoders)
        services = [_state("mllm", mllm, self._mllm.standing())]
        for (name, decoder), answer in zip(self._decoders.items(), decoders, strict=True):
            if isinstance(answer, decoder_pb2.DescribeResponse):
                known_decoders[name] = answer
            services.append(_state(name, answer, decoder.standing()))
        routes = _routes(known_mllm, known_decoders, frozenset(self._decoders))
        for state in services:
            _check_adapter(state, routes, known_decoders)
        self._snapshot = Snapshot(known_mllm, known_decoders, tuple(services), routes)
        self._refreshed_at = time.monotonic()


Description = mllm_pb2.DescribeMllmResponse | decoder_pb2.DescribeResponse


async def _attempt(worker: Mllm | Decoder) -> Description | SuperlinkError:
    try:
        return await worker.describe(DESCRIBE_TIMEOUT_S)
    except SuperlinkError as error:
        return error


def _state(name: str, answer: Description | SuperlinkError, standing: Standing) -> orchestrator_pb2.ServiceState:
    reason = answer.message if isinstance(answer, SuperlinkError) else ""
    return orchestrator_pb2.ServiceState(
        name=name,
        ready=not reason,
        reason=reason,
        breaker=standing.state.value,
        replicas=standing.replicas,
        replicas_in_use=standing.in_use,
    )


def _routes(
    mllm: mllm_pb2.DescribeMllmResponse | None,
    decoders: Mapping[str, decoder_pb2.DescribeResponse],
    deployed: frozenset[str],
) -> dict[str, ToolRoute]:
    """Routes by token: what the decoders say first, and the MLLM's word for decoders not heard of yet."""
    written = {route.token: route for route in mllm.routes} if mllm is not None else {}
    routes: dict[str, ToolRoute] = {}
    for name, description in decoders.items():
        modes = description.input_modes
        text_only = len(modes) > 0 and decoder_pb2.INPUT_MODE_LINK not in modes
        for token in description.routes:
            adapter_version = written[token].adapter_version if token in written else ""
            mode = decoder_pb2.INPUT_MODE_TEXT if text_only else decoder_pb2.INPUT_MODE_LINK
            route = ToolRoute(
                token,
                name,
                adapter_version,
                mode,
                description.max_groups,
                description.score_threshold,
                description.takes_regions,
                description.keypoint_route,
            )
            routes.setdefault(token, route)
    for token, word in written.items():
        if token not in routes and word.decoder in deployed and word.decoder not in decoders:
            routes[token] = ToolRoute(token, word.decoder, word.adapter_version, decoder_pb2.INPUT_MODE_LINK, 0, 0.0)
    return routes


def _check_adapter(
    state: orchestrator_pb2.ServiceState,
    routes: Mapping[str, ToolRoute],
    decoders: Mapping[str, decoder_pb2.DescribeResponse],
) -> None:
    """A decoder whose weights were trained with another MLLM would refuse every call: say so in its readiness."""
    if not state.ready or state.name not in decoders:
        return
    own = decoders[state.name].adapter_version
    for route in routes.values():
        linked = route.decoder == state.name and route.input_mode == decoder_pb2.INPUT_MODE_LINK
        if linked and route.adapter_version and route.adapter_version != own:
            state.ready = False
            state.reason = (
                f"Its weights are for adapter version {own!r}, the MLLM's for {route.adapter_version!r}. "
                "Deploy weights that were trained together."
            )
