"""The fast path: known phrases in, what a tool finds of them out, one prefill and one tool call."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from orchestrator.catalogue import ToolRoute
from orchestrator.deadline import Deadline
from orchestrator.engine import AnswerEngine, no_result
from orchestrator.keypoints import ask_for_keypoints
from orchestrator.timings import TimingLedger
from superlink.errors import SuperlinkError, invalid_argument
from superlink.v1 import decoder_pb2, mllm_pb2, orchestrator_pb2, types_pb2

# The decoder that answers when a request names none.
DEFAULT_TOOL = "detection"
# What a marked thing is called; regions are numbered from 1.
REGION_PHRASE = "region {number}"


async def detect(
    engine: AnswerEngine, request: orchestrator_pb2.DetectRequest, deadline: Deadline
) -> orchestrator_pb2.DetectResponse:
    """Link the phrases, then decode. Raises SuperlinkError when the request is wrong or either worker fails."""
    if not request.image.encoded:
        raise invalid_argument("no_image", "The request has no image. Send one.")
    phrases = [*request.phrases, *(REGION_PHRASE.format(number=number + 1) for number in range(len(request.regions)))]
    if not any(phrase.strip() for phrase in phrases):
        raise invalid_argument("empty_prompt", "The request names nothing to look for. Send at least one phrase.")
    ledger = TimingLedger()
    tool = request.tool or DEFAULT_TOOL
    known = await engine.catalogue.known(deadline)
    route = known.route_to(tool)
    engine.decoders[route.decoder].check_available()
    if request.regions and not route.takes_regions:
        # A tool that has only just come up may not have been heard of.
        known = await engine.catalogue.current()
        route = known.route_to(tool)
        if not route.takes_regions:
            raise invalid_argument("unsupported_region", f"The {tool} tool takes no regions; ask it by phrases.")
    asked = ask_for_keypoints(request, route, known.decoders.get(tool))
    count = len(phrases) + len(asked.keypoints)
    if route.max_groups and count > route.max_groups:
        raise invalid_argument(
            "too_many_phrases",
            f"The request names {count} phrases, regions and keypoints; the {tool} tool takes {route.max_groups} at "
            "once.",
        )
    timeout_s = deadline.for_hop(engine.settings.tool_timeout_s)
    async with engine.prefetcher.ahead([route], request.image, request.request_id, timeout_s):
        linked = await _link(engine, request, phrases, route, asked.keypoints, deadline, ledger)
        for group, region in zip(linked.groups[len(request.phrases) : len(phrases)], request.regions, strict=True):
            group.region.CopyFrom(region)
        detections = await _decode(engine, request, route, linked, deadline, ledger)
    asked.keep_own(detections)
    timings = ledger.timings()
    engine.metrics.observe_timings(timings)
    return orchestrator_pb2.DetectResponse(
        detections=detections, usage=linked.usage, timings=timings, skeletons=asked.skeletons
    )


async def _link(
    engine: AnswerEngine,
    request: orchestrator_pb2.DetectRequest,
    phrases: Sequence[str],
    route: ToolRoute,
    keypoints: Sequence[str],
    deadline: Deadline,
    ledger: TimingLedger,
) -> mllm_pb2.LinkResponse:
    """The groups of the call: with link embeddings where the decoder takes them, else the phrases as they are."""
    if route.input_mode != decoder_pb2.INPUT_MODE_LINK:
        groups = [types_pb2.LinkGroup(route=route.token, phrase=phrase) for phrase in phrases]
        groups += [types_pb2.LinkGroup(route=route.keypoint_route, phrase=name) for name in keypoints]
        return mllm_pb2.LinkResponse(groups=groups)
    link = mllm_pb2.LinkRequest(
        request_id=request.request_id,
        route=route.token,
        phrases=phrases,
        image=request.image,
        following=[mllm_pb2.RoutedPhrase(route=route.keypoint_route, phrase=name) for name in keypoints],
    )
    with ledger.hop("mllm") as hop:
        linked = await engine.mllm.link(link, deadline.for_hop())
        hop.reported.extend(linked.timings)
    return linked


async def _decode(
    engine: AnswerEngine,
    request: orchestrator_pb2.DetectRequest,
    route: ToolRoute,
    linked: mllm_pb2.LinkResponse,
    deadline: Deadline,
    ledger: TimingLedger,
) -> types_pb2.Detections:
    decode = decoder_pb2.DecodeRequest(
        request_id=request.request_id,
        image=request.image,
        groups=linked.groups,
        adapter_version=route.adapter_version,
        input_mode=route.input_mode,
        detection=request.options,
    )
    detections: types_pb2.Detections | None = None
    try:
        with ledger.hop(route.decoder) as hop:
            timeout_s = deadline.for_hop(engine.settings.tool_timeout_s)
            async with aclosing(engine.decoders[route.decoder].decode(decode, timeout_s)) as events:
                async for event in events:
                    hop.reported.extend(event.timings)
                    if event.HasField("detections"):
                        detections = event.detections
        if detections is None:
            raise no_result(route.decoder)
    except SuperlinkError as error:
        engine.metrics.tool_calls.labels(route.decoder, error.code).inc()
        raise
    engine.metrics.tool_calls.labels(route.decoder, "ok").inc()
    return detections
