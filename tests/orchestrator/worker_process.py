"""A detection worker in a process of its own, for tests that kill, stop and overload workers.

``python worker_process.py NUMBER PORT SECONDS``: it works for SECONDS on each request, one at a time. It finds one
object a group, with a score of NUMBER hundredths, so that a test sees who has answered. Its address is its first line
of output.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import grpc
from scripted_workers import ADAPTER_VERSION, detection, detections

from superlink.errors import SuperlinkError
from superlink.serving import Context, GrpcServer
from superlink.v1 import decoder_pb2, decoder_pb2_grpc

MOST_WAITING = 64


class NumberedDetector(decoder_pb2_grpc.DecoderServicer):
    def __init__(self, number: int, seconds: float) -> None:
        self._number = number
        self._seconds = seconds
        self._at_work = asyncio.Lock()
        self._inside = 0

    async def Describe(self, request: decoder_pb2.DescribeRequest, context: Context) -> decoder_pb2.DescribeResponse:
        return decoder_pb2.DescribeResponse(
            name="detection",
            version="1",
            routes=["[DET]"],
            link_width=2,
            queries_per_group=4,
            adapter_version=ADAPTER_VERSION,
            input_modes=[decoder_pb2.INPUT_MODE_LINK],
            max_groups=100,
        )

    async def Decode(
        self, request: decoder_pb2.DecodeRequest, context: Context
    ) -> AsyncIterator[decoder_pb2.DecodeEvent]:
        if any(group.phrase == "poison" for group in request.groups):
            raise ValueError("poison")
        with self._queue():
            async with self._at_work:
                await asyncio.sleep(self._seconds)
        count = len(request.groups)
        yield detections([detection(index, self._number / 100) for index in range(count)], count)

    @contextmanager
    def _queue(self) -> Iterator[None]:
        if self._inside > MOST_WAITING:
            raise SuperlinkError("queue_full", "Full.", status=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=500)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


async def main(number: int, port: int, seconds: float) -> None:
    server = GrpcServer("detection", f"127.0.0.1:{port}", drain_timeout_s=5)
    servicer = NumberedDetector(number, seconds)
    server.add(decoder_pb2_grpc.add_DecoderServicer_to_server, servicer, "superlink.v1.Decoder")
    await server.start()
    await server.set_ready(True)
    print(server.address, flush=True)  # noqa: T201
    await server.run_until_signalled()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
