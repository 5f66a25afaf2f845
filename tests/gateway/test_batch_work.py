"""What workers of batches are made of: cutting files of any size, Celery's settings, and the watch over a worker."""

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from batch_lines import detect_lines, expect_each_once, slow_detector, until_begun
from batch_workers import ENABLED, REPOSITORY, batch_gateway, batch_worker, order, until_over
from gateway_process import alone
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.exceptions import ContentDisallowed
from live_redis import LiveRedis

from orchestrator.batches.celery_app import HARD_LIMIT_S, QUEUE, TASK, VISIBILITY_TIMEOUT_S, broker_url, make_celery_app
from orchestrator.batches.lines import lines_of
from superlink.batch_coco import write_coco
from superlink.batch_results import LineResult
from superlink.profile import BatchSettings

pytestmark = [pytest.mark.surface]


@settings(max_examples=200, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=30),
    ends=st.booleans(),
    piece=st.integers(1, 50),
)
def test_lines_are_found_where_they_are_however_the_file_comes(lines: list[bytes], ends: bool, piece: int) -> None:
    content = b"\n".join(lines) + (b"\n" if ends and lines else b"")

    class Pieces(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(piece)

    found = list(lines_of(Pieces(content), max_line_bytes=30))
    mark = b"\xef\xbb\xbf"
    texts = [line if place else line.removeprefix(mark) for place, line in enumerate(content.split(b"\n"))]
    whole_lines = zip(content.split(b"\n"), texts, strict=True)
    expected = [line for line, text in whole_lines if text.strip() or len(line) > 30]
    assert [content[line.start : line.end] for line in found] == expected
    for line in found:
        whole = content[line.start : line.end]
        if line.content is None:
            assert len(whole) > 30
        else:
            assert line.content == (whole.removeprefix(mark) if line.start == 0 else whole)
            assert len(whole) <= 30


@pytest.mark.slow
def test_a_file_of_a_million_lines_is_cut_in_little_memory(tmp_path: Path) -> None:
    """In a process of its own, whose memory is measured; the file has a line for the first one again at its end."""
    profile = tmp_path / "profile.yaml"
    artifacts = {"url": str(tmp_path / "artifacts")}
    profile.write_text(yaml.safe_dump({**alone(), "artifacts": artifacts, "batches": {"max_lines": 2_000_000}}))
    program = f"""
import json, resource
from datetime import UTC, datetime, timedelta
from pathlib import Path
from orchestrator.batches.planning import plan_batch
from superlink.artifacts import open_store
from superlink.batch_documents import Order, Plan
from superlink.batch_store import BatchName, fresh_id, open_batches
from superlink.profile import load_profile
profile = load_profile(Path({str(profile)!r}))
artifacts, batches = open_store(profile), open_batches(profile)
with artifacts.create("ada") as writer:
    for thousand in range(1000):
        rows = (json.dumps({{"custom_id": f"image-{{thousand}}-{{each}}", "body": {{}}}}) for each in range(1000))
        writer.write("".join(f"{{row}}\\n" for row in rows).encode())
    writer.write(b'{{"custom_id": "image-0-0"}}\\n')
    record = writer.commit("requests.jsonl", "batch")
now = datetime.now(UTC)
order = Order(id=fresh_id(), owner="ada", endpoint="/v1/detect", input_file_id=record.id, completion_window="24h",
              metadata=None, created_at=now, expires_at=now + timedelta(days=1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
plan_batch(order, artifacts, batches, profile)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
name = BatchName("ada", order.id)
plan = batches.read(name, Plan)
cut, repeated = batches.read_cut(name, plan, plan.shards - 1)
print(json.dumps([plan.lines, plan.shards, cut.first_line, cut.lines, sorted(repeated), grown * 1024]))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert result.returncode == 0, result.stderr
    *plan, grown = json.loads(result.stdout)
    assert plan == [1_000_001, 50_001, 1_000_001, 1, [1_000_001]]
    assert grown < 40 * 1024 * 1024


def test_celery_is_set_up_to_lose_nothing() -> None:
    conf = make_celery_app("redis://127.0.0.1:1/0", BatchSettings()).conf
    assert (conf.task_acks_late, conf.task_reject_on_worker_lost, conf.worker_prefetch_multiplier) == (True, True, 1)
    assert conf.task_time_limit == HARD_LIMIT_S < VISIBILITY_TIMEOUT_S
    assert conf.broker_transport_options["visibility_timeout"] == conf.visibility_timeout == VISIBILITY_TIMEOUT_S
    options = conf.broker_transport_options
    assert (options["unacked_restore_interval"], options["unacked_restore_throttle"]) == (2, 1)
    assert conf.accept_content == ["json"]


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("redis://:word@host:6379/2", "redis://:word@host:6379/2"),
        ("rediss://host:6380/0", "rediss://host:6380/0"),
        ("unix:///run/a%20b/redis.sock?db=3", "redis+socket:///run/a b/redis.sock?virtual_host=3"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
    ],
)
def test_celery_finds_the_same_redis(url: str, broker: str) -> None:
    assert broker_url(url) == broker


@pytest.mark.faults
async def test_messages_of_another_kind_are_refused_and_the_worker_goes_on(
    redis_server: LiveRedis, tmp_path: Path
) -> None:
    async with batch_gateway(redis_server) as gateway:
        with batch_worker(tmp_path / "worker", gateway) as worker:
            app = make_celery_app(redis_server.url, BatchSettings())
            app.conf.accept_content = ["json", "pickle"]
            proof = tmp_path / "proof"
            app.send_task(TASK, args=[_Dangerous(proof)], queue=QUEUE, serializer="pickle")
            for arguments in (["a"], ["../..", "batch_1", "plan"], ["ada", "batch_1", "99999999"], []):
                app.send_task(TASK, args=arguments, queue=QUEUE)
            app.send_task("os.system", args=["touch /tmp/x"], queue=QUEUE)
            await expect_each_once(gateway, await until_over(gateway, await order(gateway, detect_lines(3))), 3)
            assert not proof.exists()
            assert ContentDisallowed.__name__ in worker.log.read_text()
            assert worker.process is not None
            assert worker.process.poll() is None


def run_program(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)


class _Dangerous:
    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._proof,)


@pytest.mark.faults
async def test_a_worker_whose_connections_are_cut_goes_on_taking_steps(redis_server: LiveRedis, tmp_path: Path) -> None:
    async with batch_gateway(redis_server) as gateway:
        slow_detector(gateway, 0.1)
        with batch_worker(tmp_path / "worker", gateway), redis_server.client() as redis:
            batch = await order(gateway, detect_lines(60))
            await until_begun(gateway)
            for _ in range(3):
                redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await asyncio.sleep(0.2)
            await expect_each_once(gateway, await until_over(gateway, batch), 60)


@pytest.mark.faults
def test_a_worker_that_takes_nothing_although_steps_wait_ends_itself(redis_server: LiveRedis, tmp_path: Path) -> None:
    """The watch alone, whose worker never beats."""
    profile = tmp_path / "profile.yaml"
    profile.write_text(yaml.safe_dump({**alone(), "artifacts": {"url": str(tmp_path)}, "batches": ENABLED}))
    with redis_server.client() as redis:
        redis.lpush(f"superlink:celery:{QUEUE}", "a step")
    program = f"""
import time
from pathlib import Path
from orchestrator.batches import worker
from orchestrator.batches.metrics import Metrics
from superlink.logs import configure_logs
from superlink.profile import load_profile
configure_logs("batches")
worker.STALL_S = 3.0
watch = worker._Watch(load_profile(Path({str(profile)!r})), {redis_server.url!r}, None, worker._Pulse(), Metrics())
watch.start()
time.sleep(30)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert result.returncode == 1
    assert "none is taken" in result.stderr


def test_one_coco_file_has_the_keypoints_of_all_lines(tmp_path: Path) -> None:
    def line(name: str, *points: str) -> LineResult:
        keypoints = [{"name": point, "x": 1.0, "y": 2.0, "score": 0.9} for point in points]
        body = {
            "image": {"width": 9, "height": 8},
            "categories": [{"phrase": "person", "found": True, "score": 0.9, "bones": [["nose", "knee"]]}],
            "detections": [
                {"category": "person", "category_index": 0, "bbox": [1, 2, 3, 4], "score": 0.9, "keypoints": keypoints}
            ],
        }
        return LineResult(custom_id=name, body=body)

    broken = LineResult(custom_id="broken", body={"data": []})
    summary = write_coco([line("a", "knee"), broken, line("b", "nose", "knee")], tmp_path / "sub" / "coco.json")
    coco = json.loads((tmp_path / "sub" / "coco.json").read_text())
    assert (summary.images, summary.annotations, summary.left_out) == (2, 2, 1)
    assert coco["categories"] == [{"id": 1, "name": "person", "keypoints": ["knee", "nose"], "skeleton": [[2, 1]]}]
    assert [each["keypoints"] for each in coco["annotations"]] == [[1, 2, 2, 0, 0, 0], [1, 2, 2, 1, 2, 2]]
    assert [(each["id"], each["image_id"]) for each in coco["annotations"]] == [(1, 1), (2, 2)]


def test_a_coco_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "coco.json").mkdir()
    with pytest.raises(OSError, match=r"coco\.json"):
        write_coco([], tmp_path / "coco.json")
    assert [each.name for each in tmp_path.iterdir()] == ["coco.json"]
