"""Real worker processes: how they start, what they say when they cannot, and how they end."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from small_decoder import decode_request, png, run_small_worker, save_small_decoder

from superlink.channels import channel_options, open_channel
from superlink.errors import from_rpc_error
from superlink.v1 import decoder_pb2_grpc

pytestmark = pytest.mark.faults

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_profile(folder: Path, name: str, **changes: object) -> tuple[Path, dict[str, object]]:
    settings = {
        "address": f"127.0.0.1:{free_port()}",
        "weights": str(folder / "weights"),
        "metrics_port": free_port(),
        "threads": 1,
        "drain_timeout_s": 10,
        "batch": {"max_batch_size": 2, "max_queue_size": 64},
        **changes,
    }
    profile = {"name": "test", "mllm": {"address": "127.0.0.1:1", "weights": "x"}, "decoders": {"small": settings}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(profile))
    return path, settings


def start_worker(profile: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HERE / "small_decoder.py"), "--profile", str(profile)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@asynccontextmanager
async def ready_channel(address: str, process: subprocess.Popen[str]) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            assert process.poll() is None, process.stderr.read()
            try:
                response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True)
            except grpc.RpcError:
                continue
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                break
            await asyncio.sleep(0.05)
        yield channel


async def answer(channel: grpc.aio.Channel, blue: int) -> int:
    stub = decoder_pb2_grpc.DecoderStub(channel)
    events = [event async for event in stub.Decode(decode_request(png((0, 0, blue))), timeout=20)]
    return len(events[-1].detections.presence)


async def test_sigterm_under_load_loses_no_request(tmp_path: Path) -> None:
    save_small_decoder(tmp_path / "weights", delay_s=0.1)
    profile, settings = write_profile(tmp_path, "load")
    process = start_worker(profile)
    try:
        async with ready_channel(settings["address"], process) as channel:
            assert await answer(channel, 0) == 2
            metrics = await asyncio.to_thread(
                lambda: urllib.request.urlopen(f"http://127.0.0.1:{settings['metrics_port']}/metrics").read().decode()
            )
            assert 'superlink_worker_ready{service="small"} 1.0' in metrics
            assert 'superlink_worker_batch_flushes_total{reason="window",service="small"} 1.0' in metrics
            running = [asyncio.create_task(answer(channel, blue)) for blue in range(12)]
            await asyncio.sleep(0.15)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.gather(*running) == [2] * 12
        assert await asyncio.to_thread(process.wait, 10) == 0
        assert '"all_requests_finished": true' in process.stderr.read()
    finally:
        process.kill()


async def test_draining_worker_finishes_what_runs_and_new_requests_go_elsewhere(tmp_path: Path) -> None:
    save_small_decoder(tmp_path / "weights", delay_s=1.5)
    workers = [write_profile(tmp_path, name, metrics_port=0) for name in ("first", "second")]
    processes = [start_worker(profile) for profile, _ in workers]
    first, second = (str(settings["address"]) for _, settings in workers)
    try:
        async with ready_channel(first, processes[0]) as channel, ready_channel(second, processes[1]):
            running = asyncio.create_task(answer(channel, 1))
            await asyncio.sleep(0.3)
            processes[0].send_signal(signal.SIGTERM)
            # Longer than the moment in which clients that watch health turn elsewhere.
            await asyncio.sleep(0.5)
            # Who knows this worker only is refused, and may come back.
            with pytest.raises(grpc.RpcError) as caught:
                await answer(channel, 2)
            error = from_rpc_error(caught.value, "small")
            assert (error.code, error.http_status, error.retryable) == ("unavailable", 503, True)
            # Who knows both is answered by the other.
            both = grpc.aio.insecure_channel(f"ipv4:{first},{second}", options=channel_options())
            async with both:
                assert await answer(both, 3) == 2
            assert await running == 2
        assert await asyncio.to_thread(processes[0].wait, 10) == 0
    finally:
        for process in processes:
            process.kill()


async def test_second_signal_ends_at_once_and_says_so(tmp_path: Path) -> None:
    save_small_decoder(tmp_path / "weights", delay_s=1.0)
    profile, settings = write_profile(tmp_path, "impatient", batch={"max_batch_size": 1})
    process = start_worker(profile)
    try:
        async with ready_channel(settings["address"], process) as channel:
            running = [asyncio.create_task(answer(channel, blue)) for blue in range(8)]
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGINT)
            outcomes = await asyncio.gather(*running, return_exceptions=True)
            assert any(isinstance(outcome, grpc.RpcError) for outcome in outcomes)
        assert await asyncio.to_thread(process.wait, 5) == 1
    finally:
        process.kill()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def assert_one_clear_line(text: str, words: list[str]) -> None:
    # Whatever was logged before it, the last line is the one for the operator.
    last = text.strip().splitlines()[-1]
    assert last.startswith("superlink small: ")
    assert all(word in last for word in words), last
    assert "Traceback" not in text


def test_process_on_a_port_in_use_ends_with_one_clear_line(tmp_path: Path, taken_port: int) -> None:
    save_small_decoder(tmp_path / "weights")
    process = start_worker(write_profile(tmp_path, "port", address=f"127.0.0.1:{taken_port}")[0])
    try:
        assert process.wait(60) == 2
        assert_one_clear_line(process.stderr.read(), ["decoders.small.address", str(taken_port), "is in use"])
    finally:
        process.kill()


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "nowhere"}, ["nowhere", "no such folder", "superlink train"]),
        ({"weights": "cut"}, ["cut/model.safetensors", "no such file", "superlink doctor"]),
        ({"treads": 2}, ["decoders.small.treads", "Did you mean 'threads'"]),
        ({"threads": 0}, ["decoders.small.threads", "greater than 0"]),
        ({"metrics_port": "taken"}, ["decoders.small.metrics_port", "is in use"]),
    ],
)
def test_what_the_operator_must_mend_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], taken_port: int, changes: dict[str, object], words: list[str]
) -> None:
    save_small_decoder(tmp_path / "weights")
    save_small_decoder(tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").unlink()
    if "weights" in changes:
        changes = {"weights": str(tmp_path / str(changes["weights"]))}
    if "metrics_port" in changes:
        changes = {"metrics_port": taken_port}
    profile, _ = write_profile(tmp_path, "wrong", **{"metrics_port": 0, **changes})
    assert run_small_worker(["--profile", str(profile)]) == 2
    assert_one_clear_line(capsys.readouterr().err, words)


@pytest.mark.usefixtures("restored_logging")
def test_wrong_profiles_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_small_worker(["--profile", str(tmp_path / "nowhere.yaml")]) == 2
    assert_one_clear_line(capsys.readouterr().err, ["nowhere.yaml", "cannot be read"])
    assert run_small_worker(["--profile", "tinny"]) == 2
    assert_one_clear_line(capsys.readouterr().err, ["No profile 'tinny'", "tiny"])
    assert run_small_worker(["--profile", "tiny"]) == 2
    assert_one_clear_line(capsys.readouterr().err, ["no decoder 'small'", "It has: detection"])
