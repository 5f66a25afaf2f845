import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from PIL import Image

from services.detection.configuration import DetectorConfig
from services.detection.model import Detector
from services.detection.service import NAME, DetectionService
from services.runtime.metrics import WorkerMetrics
from services.runtime.weights import WeightsError, save_weights
from superlink.channels import open_channel
from superlink.errors import from_rpc_error
from superlink.profile import MllmSettings, Profile, WorkerSettings
from superlink.serving import GrpcServer
from superlink.v1 import decoder_pb2, decoder_pb2_grpc, types_pb2

# Remarks of torch and mmcv about their own calls.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CONFIG = DetectorConfig(
    adapter_version="a1",
    link_width=16,
    image_side=64,
    backbone_base_channels=8,
    width=32,
    heads=2,
    feed_forward_width=32,
    encoder_layers=1,
    decoder_layers=2,
    queries=10,
    max_groups=6,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("detection")
    save_weights(Detector(CONFIG), folder, CONFIG)
    return folder


def make_service(weights: Path) -> DetectionService:
    settings = WorkerSettings(address="127.0.0.1:0", weights=weights, threads=1)
    profile = Profile(name="test", mllm=MllmSettings(address="127.0.0.1:0", weights=weights), decoders={NAME: settings})
    return DetectionService(profile, settings, WorkerMetrics(NAME))


@pytest.fixture
async def stub(weights: Path) -> AsyncIterator[decoder_pb2_grpc.DecoderStub]:
    service = make_service(weights)
    server = GrpcServer(NAME, "127.0.0.1:0", drain_timeout_s=5)
    service.register(server)
    await server.start()
    await service.start()
    await server.set_ready(True)
    async with open_channel(server.address) as channel:
        yield decoder_pb2_grpc.DecoderStub(channel)
    await server.stop()
    await service.close()


def request_for(groups: list[int], seed: int = 0, **options: float) -> decoder_pb2.DecodeRequest:
    """A noise image of 90 x 60 pixels and one random link embedding for each seed in ``groups``."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(file, "PNG")
    request = decoder_pb2.DecodeRequest(
        image=types_pb2.Image(encoded=file.getvalue()),
        adapter_version="a1",
        detection=decoder_pb2.DetectionOptions(**options),
    )
    for group in groups:
        values = np.random.default_rng(group).standard_normal(16).astype("<f4")
        tensor = types_pb2.Tensor(data=values.tobytes(), dtype="float32", shape=[16])
        request.groups.append(types_pb2.LinkGroup(route="[DET]", phrase=f"thing {group}", embedding=tensor))
    return request


async def detect(stub: decoder_pb2_grpc.DecoderStub, request: decoder_pb2.DecodeRequest) -> types_pb2.Detections:
    events = [event async for event in stub.Decode(request, timeout=20)]
    return events[-1].detections


async def test_describe(stub) -> None:
    described = await stub.Describe(decoder_pb2.DescribeRequest())
    assert (described.name, list(described.routes), described.queries_per_group) == ("detection", ["[DET]"], 4)
    assert (described.link_width, described.adapter_version, described.max_groups) == (16, "a1", 6)


async def test_detections_lie_in_the_image_and_name_their_group(stub) -> None:
    found = await detect(stub, request_for([1, 2, 3], score_threshold=0.0, max_detections=12))
    assert (found.image_width, found.image_height) == (90, 60)
    assert len(found.detections) == 12
    assert [presence.group for presence in found.presence] == [0, 1, 2]
    scores = [detection.score for detection in found.detections]
    assert scores == sorted(scores, reverse=True)
    for detection in found.detections:
        assert detection.group in {0, 1, 2}
        assert 0 <= detection.box.x1 <= detection.box.x2 <= 90
        assert 0 <= detection.box.y1 <= detection.box.y2 <= 60


async def test_options_are_obeyed(stub) -> None:
    assert len((await detect(stub, request_for([1], score_threshold=1.0))).detections) == 0
    assert len((await detect(stub, request_for([1, 2], score_threshold=0.0, max_detections=3))).detections) == 3


async def test_order_of_groups_and_company_in_a_batch_change_nothing(stub) -> None:
    async def presence(groups: list[int], seed: int) -> dict[int, float]:
        found = await detect(stub, request_for(groups, seed, score_threshold=0.0))
        return {group: entry.score for group, entry in zip(groups, found.presence, strict=True)}

    alone = await presence([1, 2, 3], seed=5)
    shuffled = await presence([3, 1, 2], seed=5)
    in_company, *_ = await asyncio.gather(
        presence([1, 2, 3], seed=5), presence([4], seed=6), presence([5, 6, 7, 8, 9, 10], seed=7)
    )
    assert shuffled == pytest.approx(alone, abs=1e-5)
    assert in_company == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"score_threshold": 1.5}, "score_threshold is 1.5; it must lie in 0..1"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"max_detections": 0}, "max_detections is 0; it must lie in 1..1000"),
        ({"max_detections": 2000}, "max_detections is 2000"),
    ],
)
async def test_options_out_of_range_are_refused(stub, options: dict[str, float], words: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await detect(stub, request_for([1], **options))
    error = from_rpc_error(caught.value, NAME)
    assert (error.code, error.http_status) == ("invalid_option", 400)
    assert words in error.message


def test_weights_of_another_size_are_refused_by_name(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(CONFIG.model_copy(update={"queries": 11}).model_dump_json())
    with pytest.raises(WeightsError, match=r"query_content.weight \(10, 32\) instead of \(11, 32\)"):
        make_service(tmp_path).load(tmp_path)


def test_worker_loads_what_the_trainer_saves(tmp_path: Path) -> None:
    detector = Detector(CONFIG)
    detector.save(tmp_path)
    loaded = make_service(tmp_path).load(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in detector.state_dict().items())
