from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from PIL import Image

from services.pose.model import PoseEstimator
from services.pose.service import NAME, PoseService
from services.runtime.metrics import WorkerMetrics
from superlink.channels import open_channel
from superlink.errors import from_rpc_error
from superlink.profile import MllmSettings, Profile, WorkerSettings
from superlink.serving import GrpcServer
from superlink.v1 import decoder_pb2, decoder_pb2_grpc, types_pb2
from tests.pose.small import CONFIG

# Remarks of torch and mmcv about their own calls.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pose")
    PoseEstimator(CONFIG).save(folder)
    return folder


@pytest.fixture
async def stub(weights: Path) -> AsyncIterator[decoder_pb2_grpc.DecoderStub]:
    settings = WorkerSettings(address="127.0.0.1:0", weights=weights, threads=1)
    profile = Profile(name="test", mllm=MllmSettings(address="127.0.0.1:0", weights=weights), decoders={NAME: settings})
    service = PoseService(profile, settings, WorkerMetrics(NAME))
    server = GrpcServer(NAME, "127.0.0.1:0", drain_timeout_s=5)
    service.register(server)
    await server.start()
    await service.start()
    await server.set_ready(True)
    async with open_channel(server.address) as channel:
        yield decoder_pb2_grpc.DecoderStub(channel)
    await server.stop()
    await service.close()


def request_for(*phrases: str) -> decoder_pb2.DecodeRequest:
    """A noise image of 90 x 60 pixels, asked for phrases; those in capitals mean things, the others keypoints."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(file, "PNG")
    request = decoder_pb2.DecodeRequest(
        image=types_pb2.Image(encoded=file.getvalue()),
        adapter_version="0",
        detection=decoder_pb2.DetectionOptions(score_threshold=0.0, max_detections=4),
    )
    for phrase in phrases:
        values = np.random.default_rng(list(phrase.encode())).standard_normal(16).astype("<f4")
        tensor = types_pb2.Tensor(data=values.tobytes(), dtype="float32", shape=[16])
        route = "[POSE_OBJECT]" if phrase.isupper() else "[POSE]"
        request.groups.append(types_pb2.LinkGroup(route=route, phrase=phrase, embedding=tensor))
    return request


async def decode(stub: decoder_pb2_grpc.DecoderStub, *phrases: str) -> types_pb2.Detections:
    events = [event async for event in stub.Decode(request_for(*phrases), timeout=20)]
    return events[-1].detections


async def test_it_says_which_route_names_keypoints_and_which_skeletons_it_knows(stub) -> None:
    described = await stub.Describe(decoder_pb2.DescribeRequest())

    assert (described.name, list(described.routes)) == ("pose", ["[POSE_OBJECT]", "[POSE]"])
    assert described.keypoint_route == "[POSE]"
    [skeleton] = described.skeletons
    assert list(skeleton.names) == ["cross", "crosses"]
    assert list(skeleton.keypoints) == ["top", "left arm"]
    assert [(bone.first, bone.second) for bone in skeleton.bones] == [(0, 1)]


async def test_every_find_has_the_keypoints_by_name_in_the_order_of_the_request(stub) -> None:
    found = await decode(stub, "MAN", "DEER", "nose", "left eye", "tail")
    turned = await decode(stub, "MAN", "DEER", "tail", "nose", "left eye")

    assert [entry.group for entry in found.presence] == [0, 1]
    assert len(found.detections) == 4
    for detection, other in zip(found.detections, turned.detections, strict=True):
        assert detection.group in {0, 1}
        keypoints = {keypoint.name: keypoint for keypoint in detection.keypoints.keypoints}
        assert list(keypoints) == ["nose", "left eye", "tail"]
        assert [keypoint.name for keypoint in other.keypoints.keypoints] == ["tail", "nose", "left eye"]
        for keypoint in other.keypoints.keypoints:
            assert 0 <= keypoint.x <= 90
            assert 0 <= keypoint.y <= 60
            assert 0 <= keypoint.score <= 1
            same = keypoints[keypoint.name]
            assert (keypoint.x, keypoint.y) == pytest.approx((same.x, same.y), abs=1e-2)


async def test_things_without_keypoints_have_boxes(stub) -> None:
    found = await decode(stub, "MAN")

    assert len(found.detections) == 4
    assert not any(detection.keypoints.keypoints for detection in found.detections)


@pytest.mark.parametrize("phrases", [("nose",), ("nose", "MAN"), ("MAN", "nose", "DEER", "tail")])
async def test_keypoints_without_a_thing_before_them_are_refused(stub, phrases: tuple[str, ...]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await decode(stub, *phrases)

    error = from_rpc_error(caught.value, NAME)
    assert (error.code, error.http_status) == ("misplaced_keypoints", 400)
    assert "send the things first" in error.message
