"""The disk is full, the store of files cannot be reached, or Redis has no memory left."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import boto3  # type: ignore[import-untyped]
from moto.server import ThreadedMotoServer

from tests.chaos.clients import Clients, Reply, until
from tests.chaos.rows import Row, Tell
from tests.chaos.stack import ChaosStack
from tests.chaos.tcp_proxy import WHOLE, Fault, proxy_to

SCENARIO = "failing stores"
SMALL_DISK_BYTES = 48 * 1024 * 1024
REQUESTS = 5
# From the end of a fault until all works again.
WHOLE_WITHIN_S = 5.0
# A client of a store that does not answer is told so by then.
TOLD_WITHIN_S = 30.0
PROMISE = (
    "requests that need no store are answered; the others are refused with its name in time; nothing accepted is lost, "
    f"nothing refused is there; whole ≤ {WHOLE_WITHIN_S:g} s after"
)
# What a client may be told of each store.
_STORAGE, _REDIS = {"storage_unavailable"}, {"redis_unavailable"}


class NoSmallDisk(Exception):
    """This machine lets nobody mount one."""


def disk_full(folder: Path, tell: Tell) -> list[Row]:
    """The disk that holds the stack's folder."""
    disk = folder / "disk"
    done = "the disk of the state folder full"
    try:
        with small_disk(disk), ChaosStack(disk) as stack:
            clients = Clients(stack.url)
            _before(clients)
            tell("filling the disk")
            with _filled(disk):
                replies = _ask_all(clients, tell)
            row = _judge(stack, clients, done, replies, _STORAGE | _REDIS)
    except NoSmallDisk as error:
        return [_not_tried(done, str(error))]
    return [row]


async def store_unreachable(
    folder: Path, tell: Tell, faults: Sequence[str] = ("refused", "silent"), requests: int = REQUESTS
) -> list[Row]:
    """An object store behind a network that refuses, or swallows all."""
    rows = []
    # It would write a line for every request.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        store = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106 (the store takes any)
            region_name="us-east-1",
        )
        store.create_bucket(Bucket="chaos")
        async with proxy_to(f"{host}:{port}") as proxy:
            environment["AWS_ENDPOINT_URL_S3"] = f"http://{proxy.address}"
            stack = await asyncio.to_thread(
                ChaosStack(folder, {"artifacts.url": "s3://chaos/superlink"}, environment).__enter__
            )
            try:
                clients = Clients(stack.url)
                await asyncio.to_thread(_before, clients)
                for name in faults:
                    tell(f"object store: {name}")
                    proxy.set(Fault(reset=True) if name == "refused" else Fault(blackhole=True))
                    replies = await asyncio.to_thread(_ask_all, clients, tell, requests)
                    proxy.set(WHOLE)
                    done = f"object store: connections {'refused' if name == 'refused' else 'without an answer'}"
                    rows.append(await asyncio.to_thread(_judge, stack, clients, done, replies, _STORAGE))
            finally:
                await asyncio.to_thread(stack.__exit__, None, None, None)
    finally:
        server.stop()
    return rows


def redis_out_of_memory(stack: ChaosStack, tell: Tell) -> list[Row]:
    """Redis refuses to write."""
    restarts = stack.restarts()
    clients = Clients(stack.url)
    _before(clients)
    tell("taking memory from Redis")
    assert stack.redis_command("CONFIG", "SET", "maxmemory", "1").startswith(b"+OK")
    try:
        replies = _ask_all(clients, tell)
    finally:
        stack.redis_command("CONFIG", "SET", "maxmemory", "1gb")
    return [_judge(stack, clients, "Redis out of memory (noeviction)", replies, _REDIS, restarts)]


@contextmanager
def small_disk(folder: Path, size_bytes: int = SMALL_DISK_BYTES) -> Iterator[Path]:
    """A file system of its own at ``folder``. Raises NoSmallDisk where nothing may be mounted."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        raise NoSmallDisk(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def _filled(disk: Path) -> Iterator[None]:
    """No byte is left on ``disk`` for the block."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1024 * 1024, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(filler)


def _before(clients: Clients) -> None:
    for _ in range(3):
        for reply in (clients.upload(), clients.detect_with_key(), clients.detect()):
            assert reply.status == 200, reply


def _ask_all(clients: Clients, tell: Tell, requests: int = REQUESTS) -> dict[str, list[Reply]]:
    asked = {"file": clients.upload, "key": clients.detect_with_key, "plain": clients.detect}
    replies: dict[str, list[Reply]] = {kind: [] for kind in asked}
    for number in range(requests):
        for kind, ask in asked.items():
            tell(f"asking, {number + 1} of {requests}: {kind}")
            replies[kind].append(ask())
    tell(clients.state())
    return replies


def _judge(
    stack: ChaosStack,
    clients: Clients,
    done: str,
    replies: dict[str, list[Reply]],
    codes: set[str],
    restarts_before: int = 0,
) -> Row:
    """The fault has just ended."""
    whole_s = max(until(ask, 200, 30.0) for ask in (clients.upload, clients.detect_with_key, clients.detect))
    damage = clients.damage()
    every = [reply for kind in replies.values() for reply in kind]
    unclear = [each for each in every if each.status != 200 and not (each.status == 503 and each.code in codes)]
    plain_failures = sum(each.status != 200 for each in replies["plain"])
    slowest_s = max(each.seconds for each in every)
    restarts = stack.restarts() - restarts_before
    said = "; ".join(f"{kind}: {_summary(each)}" for kind, each in replies.items())
    measured = f"{said}; slowest {slowest_s:.1f} s; whole {whole_s:.1f} s after it; {len(damage)} damaged"
    if damage:
        measured += f" ({'; '.join(damage[:3])})"
    if restarts:
        ends = {name: each.last_end for name, each in stack.processes().items() if each.restarts}
        measured += f"; restarted: {ends}"
    return Row(
        scenario=SCENARIO,
        done=done,
        promise=PROMISE,
        measured=measured,
        holds=not (unclear or plain_failures or damage or restarts)
        and slowest_s <= TOLD_WITHIN_S
        and whole_s <= WHOLE_WITHIN_S,
        figures={
            "unclear": len(unclear),
            "plain_failures": plain_failures,
            "slowest_s": round(slowest_s, 2),
            "whole_after_s": round(whole_s, 2),
            "damaged": len(damage),
            "restarts": restarts,
        },
    )


def _summary(replies: list[Reply]) -> str:
    counts = Counter("answered" if each.status == 200 else f"{each.status} {each.code}" for each in replies)
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _not_tried(done: str, reason: str) -> Row:
    return Row(scenario=SCENARIO, done=done, promise=PROMISE, measured=reason, holds=None)
