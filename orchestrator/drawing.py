"""The fast path of tools that make images: one prompt in, images out, with progress on the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from orchestrator.catalogue import DRAWING_TOKEN, EDITING_TOKEN, ToolRoute
from orchestrator.deadline import Deadline
from orchestrator.engine import AnswerEngine, no_result
from orchestrator.timings import TimingLedger
from superlink.errors import SuperlinkError, invalid_argument
from superlink.v1 import decoder_pb2, mllm_pb2, orchestrator_pb2, types_pb2

# The decoder that draws and edits.
TOOL = "diffusion"


async def draw(
    engine: AnswerEngine, request: orchestrator_pb2.DrawRequest, deadline: Deadline
) -> AsyncGenerator[orchestrator_pb2.DrawEvent, None]:
    """Link the prompt, then make the images: progress, and last the response.

    Only the request's own deadline bounds the tool, since its progress shows whether it works. Closing the iterator
    cancels the calls. Raises SuperlinkError when the request is wrong or either worker fails.
    """
    edits = request.HasField("image")
    if not request.prompt.strip():
        wanted = "what to change" if edits else "what to draw"
        raise invalid_argument("empty_prompt", f"The request has no prompt. Say {wanted}.")
    if request.HasField("region") and not edits:
        raise invalid_argument("no_image", "The request marks a region, but has no image to edit. Send one.")
    ledger = TimingLedger()
    route = (await engine.catalogue.known(deadline)).route_to(TOOL, EDITING_TOKEN if edits else DRAWING_TOKEN)
    engine.decoders[route.decoder].check_available()
    linked = await _link(engine, request, route, deadline, ledger)
    images: types_pb2.GeneratedImages | None = None
    try:
        async with aclosing(_decode(engine, request, route, linked, deadline, ledger)) as events:
            async for event in events:
                if event.HasField("progress"):
                    yield orchestrator_pb2.DrawEvent(progress=event.progress)
                elif event.HasField("images"):
                    images = event.images
        if images is None:
            raise no_result(route.decoder)
    except SuperlinkError as error:
        engine.metrics.tool_calls.labels(route.decoder, error.code).inc()
        raise
    engine.metrics.tool_calls.labels(route.decoder, "ok").inc()
    timings = ledger.timings()
    engine.metrics.observe_timings(timings)
    response = orchestrator_pb2.DrawResponse(images=images, usage=linked.usage, timings=timings)
    yield orchestrator_pb2.DrawEvent(response=response)


async def _link(
    engine: AnswerEngine,
    request: orchestrator_pb2.DrawRequest,
    route: ToolRoute,
    deadline: Deadline,
    ledger: TimingLedger,
) -> mllm_pb2.LinkResponse:
    """The one group of the call: with its link embedding where the decoder takes them, else the prompt as it is."""
    if route.input_mode != decoder_pb2.INPUT_MODE_LINK:
        group = types_pb2.LinkGroup(route=route.token, phrase=request.prompt)
        return mllm_pb2.LinkResponse(groups=[group])
    link = mllm_pb2.LinkRequest(
        request_id=request.request_id,
        route=route.token,
        phrases=[request.prompt],
        image=request.image if route.needs_image else None,
    )
    with ledger.hop("mllm") as hop:
        linked = await engine.mllm.link(link, deadline.for_hop())
        hop.reported.extend(linked.timings)
    return linked


async def _decode(
    engine: AnswerEngine,
    request: orchestrator_pb2.DrawRequest,
    route: ToolRoute,
    linked: mllm_pb2.LinkResponse,
    deadline: Deadline,
    ledger: TimingLedger,
) -> AsyncGenerator[decoder_pb2.DecodeEvent, None]:
    """What the decoder sends."""
    decode = decoder_pb2.DecodeRequest(
        request_id=request.request_id,
        image=request.image if route.needs_image else None,
        groups=linked.groups,
        adapter_version=route.adapter_version,
        input_mode=route.input_mode,
        diffusion=request.options,
    )
    if request.HasField("region"):
        for group in decode.groups:
            group.region.CopyFrom(request.region)
    with ledger.hop(route.decoder) as hop:
        async with aclosing(engine.decoders[route.decoder].decode(decode, deadline.for_hop())) as events:
            async for event in events:
                hop.mark_event()
                hop.reported.extend(event.timings)
                yield event
