import asyncio
import time

import grpc
import numpy as np
import pytest
from small_decoder import ADAPTER_VERSION, MAX_GROUPS, WIDTH, decode_request, link_group, png

from superlink.channels import request_metadata
from superlink.errors import SuperlinkError, from_rpc_error
from superlink.profile import BatchLimits
from superlink.v1 import decoder_pb2, types_pb2


async def answer(stub, request: decoder_pb2.DecodeRequest, timeout_s: float = 10) -> decoder_pb2.DecodeEvent:
    events = [event async for event in stub.Decode(request, timeout=timeout_s)]
    return events[-1]


async def refusal(stub, request: decoder_pb2.DecodeRequest, timeout_s: float = 10) -> SuperlinkError:
    with pytest.raises(grpc.RpcError) as caught:
        await answer(stub, request, timeout_s)
    return from_rpc_error(caught.value, "small")


def scores(event: decoder_pb2.DecodeEvent) -> list[float]:
    return [presence.score for presence in event.detections.presence]


async def test_describe_says_what_the_decoder_takes(start_service) -> None:
    running = await start_service()
    described = await running.stub.Describe(decoder_pb2.DescribeRequest())
    assert (described.name, described.link_width, described.adapter_version) == ("small", WIDTH, ADAPTER_VERSION)
    assert list(described.routes) == ["[DET]", "[SEG]"]
    assert list(described.input_modes) == [decoder_pb2.INPUT_MODE_LINK]
    assert (described.max_groups, described.max_image_bytes) == (MAX_GROUPS, 10 * 1024 * 1024)
    assert described.score_threshold == 0.25


async def test_answer_in_a_batch_is_the_answer_alone(start_service) -> None:
    running = await start_service(batch=BatchLimits(max_batch_size=8, max_wait_ms=50))
    colours = [(20 * index, 255 - 20 * index, 7) for index in range(8)]
    # Several sizes, so that not all images can be stacked, and several numbers of groups.
    requests = [
        decode_request(png(colour, size=(24, 16 + 8 * (index % 2))), groups=1 + index % 4)
        for index, colour in enumerate(colours)
    ]
    alone = [await answer(running.stub, request) for request in requests]
    running.service._cache.clear()
    together = await asyncio.gather(*(answer(running.stub, request) for request in requests))
    assert running.metrics.value("superlink_worker_batch_size_sum") == 16
    assert running.metrics.value("superlink_worker_batch_size_count") < 16
    for request, one, other in zip(requests, alone, together, strict=True):
        assert len(scores(one)) == len(request.groups)
        assert np.allclose(scores(one), scores(other), atol=1e-6)
        assert (one.detections.image_width, one.detections.image_height) == (
            other.detections.image_width,
            other.detections.image_height,
        )


async def test_second_prompt_on_an_image_skips_the_backbone(start_service) -> None:
    running = await start_service()
    encoded_at_start = running.service.decoder.encoded_images
    first = await answer(running.stub, decode_request(groups=2))
    second = await answer(running.stub, decode_request(groups=3))
    assert running.service.decoder.encoded_images == encoded_at_start + 1
    assert np.allclose(scores(first), scores(second)[:2])
    assert second.detections.image_width == 24
    assert running.metrics.value("superlink_worker_feature_cache_lookups_total", result="hit") == 1
    assert running.metrics.value("superlink_worker_feature_cache_lookups_total", result="miss") == 1


async def test_same_image_in_one_batch_is_encoded_once(start_service) -> None:
    running = await start_service(batch=BatchLimits(max_batch_size=4, max_wait_ms=200))
    encoded_at_start = running.service.decoder.encoded_images
    await asyncio.gather(*(answer(running.stub, decode_request()) for _ in range(4)))
    assert running.service.decoder.encoded_images == encoded_at_start + 1


async def test_a_prefetch_spares_the_next_prompt_the_backbone(start_service) -> None:
    running = await start_service()
    encoded_at_start = running.service.decoder.encoded_images
    ahead = await answer(running.stub, decode_request(groups=0))
    again = await answer(running.stub, decode_request(groups=0))
    assert not ahead.HasField("detections")
    assert not again.HasField("detections")
    assert len(scores(await answer(running.stub, decode_request(groups=2)))) == 2
    assert running.service.decoder.encoded_images == encoded_at_start + 1


async def test_prefetches_and_prompts_share_a_batch(start_service) -> None:
    running = await start_service(batch=BatchLimits(max_batch_size=4, max_wait_ms=200))
    groups = [0, 2, 0, 1]
    events = await asyncio.gather(
        *(answer(running.stub, decode_request(png((index, 0, 0)), groups=count)) for index, count in enumerate(groups))
    )
    assert [len(scores(event)) for event in events] == groups
    assert running.metrics.value("superlink_worker_batch_size_count") == 1


async def test_a_prefetch_that_would_not_be_kept_computes_nothing(start_service) -> None:
    running = await start_service(feature_cache_entries=0)
    encoded_at_start = running.service.decoder.encoded_images
    await answer(running.stub, decode_request(groups=0))
    assert running.service.decoder.encoded_images == encoded_at_start


async def test_cache_of_no_entries_still_answers(start_service) -> None:
    running = await start_service(feature_cache_entries=0)
    first, second = [await answer(running.stub, decode_request()) for _ in range(2)]
    assert scores(first) == scores(second)


async def test_last_event_says_where_the_time_went(start_service) -> None:
    running = await start_service(delay_s=0.05)
    event = await answer(running.stub, decode_request())
    phases = {timing.phase: timing.milliseconds for timing in event.timings}
    assert set(phases) == {"prepare", "queue", "compute", "total"}
    assert phases["compute"] >= 50
    assert phases["total"] >= phases["prepare"] + phases["queue"] + phases["compute"] - 1
    assert {timing.service for timing in event.timings} == {"small"}


def with_embedding(**fields: object) -> decoder_pb2.DecodeRequest:
    request = decode_request(groups=2)
    request.groups[1].embedding.CopyFrom(types_pb2.Tensor(**fields))
    return request


def with_route(route: str) -> decoder_pb2.DecodeRequest:
    request = decode_request(groups=1)
    request.groups.append(link_group(route=route))
    return request


def with_region() -> decoder_pb2.DecodeRequest:
    request = decode_request()
    request.groups[1].region.box.CopyFrom(types_pb2.Box(x1=1, y1=1, x2=5, y2=5))
    return request


def with_adapter(version: str) -> decoder_pb2.DecodeRequest:
    request = decode_request()
    request.adapter_version = version
    return request


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (decode_request(groups=MAX_GROUPS + 1), "too_many_groups", "6 groups; at most 5"),
        (with_route("[POSE]"), "unknown_route", r"'\[POSE\]'. It answers \[DET\], \[SEG\]"),
        (with_route(""), "unknown_route", r"''"),
        (with_region(), "unsupported_region", "small decoder takes no regions"),
        (with_adapter("8"), "adapter_version_mismatch", "version '8'; the small decoder has '7'"),
        (with_adapter(""), "adapter_version_mismatch", "version ''"),
        (decode_request(input_mode=decoder_pb2.INPUT_MODE_TEXT), "unsupported_input_mode", "not phrases"),
        (with_embedding(data=bytes(16), dtype="float32", shape=[4]), "invalid_tensor", r"group 1 has shape \[4\]"),
        (with_embedding(data=b"\0\0\xc0\x7f" * WIDTH, dtype="float32", shape=[WIDTH]), "invalid_tensor", "not finite"),
        (with_embedding(data=bytes(3), dtype="float32", shape=[WIDTH]), "invalid_tensor", "carries 3 bytes"),
        (decode_request(b""), "image_missing", "no image"),
        (decode_request(b"not an image at all"), "unsupported_image", "JPEG, PNG or WebP"),
        (decode_request(bytes(20_000_000)), "image_too_large", "20,000,000 bytes"),
        (decode_request(png(size=(64, 64))[:80]), "image_truncated", "before its last pixel"),
    ],
)
async def test_bad_requests_are_refused_by_name_and_the_worker_goes_on(start_service, request_, code, words) -> None:
    running = await start_service()
    error = await refusal(running.stub, request_)
    assert error.code == code
    assert error.service == "small"
    expected = "FAILED_PRECONDITION" if code == "adapter_version_mismatch" else "INVALID_ARGUMENT"
    assert error.status.name == expected
    with pytest.raises(SuperlinkError, match=words):
        raise error
    assert scores(await answer(running.stub, decode_request()))


async def test_wrong_digest_does_not_poison_the_cache(start_service) -> None:
    running = await start_service()
    right = await answer(running.stub, decode_request(png((1, 2, 3))))
    request = decode_request(png((200, 100, 50)))
    request.image.sha256 = "00" * 32
    assert (await refusal(running.stub, request)).code == "image_digest_mismatch"
    assert scores(await answer(running.stub, decode_request(png((1, 2, 3))))) == scores(right)


async def test_full_worker_refuses_with_a_retry_delay(start_service) -> None:
    running = await start_service(delay_s=0.1, batch=BatchLimits(max_batch_size=1, max_wait_ms=0, max_queue_size=2))
    await answer(running.stub, decode_request())
    outcomes = await asyncio.gather(
        *(answer(running.stub, decode_request()) for _ in range(12)), return_exceptions=True
    )
    refused = [from_rpc_error(outcome, "small") for outcome in outcomes if isinstance(outcome, grpc.RpcError)]
    assert 6 <= len(refused) <= 9
    assert {(error.code, error.http_status) for error in refused} == {("queue_full", 429)}
    assert all(100 <= error.retry_after_ms <= 2000 for error in refused)
    assert all(scores(outcome) for outcome in outcomes if isinstance(outcome, decoder_pb2.DecodeEvent))
    assert scores(await answer(running.stub, decode_request()))


async def test_request_that_waited_too_long_is_told_to_come_back(start_service) -> None:
    running = await start_service(delay_s=1.0, batch=BatchLimits(max_batch_size=1, max_wait_ms=0, max_queue_s=0.2))
    busy = asyncio.create_task(answer(running.stub, decode_request(png((0, 0, 2)))))
    await asyncio.sleep(0.1)
    error = await refusal(running.stub, decode_request(png((0, 0, 3))))
    assert (error.code, error.http_status, error.service) == ("queued_too_long", 429, "small")
    assert error.retryable
    assert error.retry_after_ms > 0
    assert not busy.done()
    assert scores(await busy)


async def test_cancelled_and_late_requests_never_reach_the_model(start_service) -> None:
    running = await start_service(delay_s=0.2, batch=BatchLimits(max_batch_size=1, max_wait_ms=0))
    await answer(running.stub, decode_request(png((0, 0, 1))))
    encoded = running.service.decoder.encoded_images
    busy = asyncio.create_task(answer(running.stub, decode_request(png((0, 0, 2)))))
    await asyncio.sleep(0.05)
    leaving = asyncio.create_task(answer(running.stub, decode_request(png((0, 0, 3)))))
    late = asyncio.create_task(refusal(running.stub, decode_request(png((0, 0, 4))), timeout_s=0.05))
    await asyncio.sleep(0.05)
    leaving.cancel()
    assert (await late).status is grpc.StatusCode.DEADLINE_EXCEEDED
    await busy
    await answer(running.stub, decode_request(png((0, 0, 5))))
    assert running.service.decoder.encoded_images == encoded + 2
    assert running.metrics.value("superlink_worker_requests_total", outcome="cancelled") == 1
    assert running.metrics.value("superlink_worker_requests_total", outcome="expired") == 1


async def test_event_loop_stays_free_while_the_model_computes(start_service) -> None:
    running = await start_service(delay_s=0.5, batch=BatchLimits(max_wait_ms=0))
    busy = asyncio.create_task(answer(running.stub, decode_request()))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await running.stub.Describe(decoder_pb2.DescribeRequest(), metadata=request_metadata("r"))
    assert time.monotonic() - began < 0.2
    await busy
