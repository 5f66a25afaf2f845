"""The MLLM worker and the command on a checkpoint in its authors' layout."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from original_checkpoints import write_original
from PIL import Image
from typer.testing import CliRunner

from services.mllm.model import Mllm
from services.mllm.service import MllmService
from services.runtime.metrics import WorkerMetrics
from services.runtime.weights import WeightsError
from superlink.channels import open_channel
from superlink.cli.main import build_app
from superlink.errors import from_rpc_error
from superlink.profile import MllmSettings, Profile
from superlink.serving import GrpcServer
from superlink.v1 import mllm_pb2, mllm_pb2_grpc, types_pb2

pytestmark = pytest.mark.internvl


def picture(width: int, height: int) -> mllm_pb2.Part:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 90)).save(file, "PNG")
    data = file.getvalue()
    return mllm_pb2.Part(image=types_pb2.Image(encoded=data, sha256=hashlib.sha256(data).hexdigest()))


def message(*parts: mllm_pb2.Part, role: mllm_pb2.Role = mllm_pb2.ROLE_USER) -> mllm_pb2.Message:
    return mllm_pb2.Message(role=role, parts=[*parts, mllm_pb2.Part(text="find")])


async def usage(stub: mllm_pb2_grpc.MllmStub, *messages: mllm_pb2.Message) -> mllm_pb2.Usage:
    request = mllm_pb2.GenerateRequest(messages=messages, sampling=mllm_pb2.Sampling(max_new_tokens=3))
    events = [event async for event in stub.Generate(request)]
    return next(event.usage for event in events if event.HasField("usage"))


@contextlib.asynccontextmanager
async def served(weights: Path, max_tiles: int) -> AsyncIterator[mllm_pb2_grpc.MllmStub]:
    settings = MllmSettings(address="127.0.0.1:0", weights=weights, threads=1, max_tiles=max_tiles)
    service = MllmService(Profile(name="test", mllm=settings, decoders={}), WorkerMetrics("mllm"))
    server = GrpcServer("mllm", "127.0.0.1:0", drain_timeout_s=5)
    service.register(server)
    await server.start()
    await service.start()
    await server.set_ready(True)
    async with open_channel(server.address) as channel:
        yield mllm_pb2_grpc.MllmStub(channel)
    await server.stop()
    await service.close()


async def test_the_worker_serves_an_original_checkpoint_up_to_4k(tmp_path: Path) -> None:
    write_original(tmp_path, "internlm2-chat", system_message="find the dog")
    async with served(tmp_path, max_tiles=40) as stub:
        # Four tokens a tile of 56 pixels; 28 tiles and the thumbnail.
        wide = await usage(stub, message(picture(3840, 2160)))
        assert wide.image_tokens == 29 * 4
        assert wide.completion_tokens == 3
        # Two pictures have 20 tiles each.
        both = await usage(stub, message(picture(448, 448), picture(896, 448)))
        assert both.image_tokens == (17 + 19) * 4
        # The older one is seen as a whole, the newer one in full.
        answer = message(role=mllm_pb2.ROLE_ASSISTANT)
        later = await usage(stub, message(picture(448, 448)), answer, message(picture(896, 448)))
        assert later.image_tokens == (1 + 33) * 4
        # A question without a picture leaves the last one as it was.
        again = await usage(stub, message(picture(448, 448)), answer, message())
        assert again.image_tokens == 37 * 4


async def test_images_that_do_not_fit_are_refused_with_their_count(tmp_path: Path) -> None:
    write_original(tmp_path, "internvl2_5")
    async with served(tmp_path, max_tiles=160) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            await usage(stub, message(picture(1200, 900)))
        error = from_rpc_error(caught.value, "mllm")
        assert error.code == "prompt_too_long"
        assert "tokens, images included; this model reads 512" in str(error)


async def test_models_that_never_saw_tiles_get_none(tmp_path: Path) -> None:
    write_original(tmp_path, "Hermes-2", ps_version="v1", dynamic_image_size=False)
    async with served(tmp_path, max_tiles=12) as stub:
        assert (await usage(stub, message(picture(640, 480)))).image_tokens == 4


def test_the_command_converts_both_ways_and_says_what_it_wrote(tmp_path: Path) -> None:
    write_original(tmp_path / "original", "phi3-chat")
    app = build_app(["convert"])
    first = CliRunner().invoke(app, ["convert", str(tmp_path / "original"), str(tmp_path / "native")])
    assert first.exit_code == 0, first.output
    assert "native layout" in first.output
    assert "template phi3-chat" in first.output
    second = CliRunner().invoke(app, ["convert", str(tmp_path / "native"), str(tmp_path / "again")])
    assert second.exit_code == 0, second.output
    assert "original layout" in second.output
    assert Mllm.load(tmp_path / "again")[0].config.prompt.template == "phi3-chat"
    failed = CliRunner().invoke(app, ["convert", str(tmp_path / "nowhere"), str(tmp_path / "new")])
    assert isinstance(failed.exception, WeightsError)
    assert not (tmp_path / "new").exists()
