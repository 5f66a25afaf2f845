"""The life of a worker process, the same for the MLLM and for every decoder.

Read the profile, listen (health NOT_SERVING), load the weights, warm up, serve; on SIGTERM drain and end. Exit codes: 0
after an orderly end, 1 when requests had to be cut off, 2 with one line on standard error for a mistake in the profile,
the weights or the ports.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from services.runtime.allocator import keep_freed_memory
from services.runtime.metrics import WorkerMetrics
from superlink.configuration import ConfigurationError
from superlink.logs import configure_logs
from superlink.profile import Profile, WorkerSettings, find_profile, load_profile
from superlink.serving import GrpcServer
from superlink.telemetry import exported_traces

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED_REQUESTS = 1
EXIT_CONFIGURATION = 2


class Worker(ABC):
    """What one kind of worker adds to the shared life."""

    @abstractmethod
    def register(self, server: GrpcServer) -> None:
        """Add the worker's gRPC services to ``server``. They are called only after ``start`` has returned."""

    @abstractmethod
    async def start(self) -> None:
        """Load the weights and warm up. Raises ConfigurationError (WeightsError) for what the operator must mend."""

    @abstractmethod
    def drain(self) -> None:
        """The process was told to end: requests in flight should finish without waiting for company."""

    @abstractmethod
    async def close(self) -> None:
        """No request is in flight any more: stop threads."""


WorkerFactory = Callable[[Profile, WorkerMetrics], Worker]
SettingsChoice = Callable[[Profile], WorkerSettings]


def decoder_settings(profile: Profile, name: str) -> WorkerSettings:
    """The settings of the decoder called ``name``. Raises ConfigurationError when the profile has no such decoder."""
    if name not in profile.decoders:
        known = ", ".join(sorted(profile.decoders)) or "none"
        raise ConfigurationError(f"decoders: profile {profile.name!r} has no decoder {name!r}. It has: {known}.")
    return profile.decoders[name]


def run_worker(
    service: str,
    make: WorkerFactory,
    settings_of: SettingsChoice,
    setting: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a worker process until it is told to end, and return its exit code.

    ``service`` is its name in logs, metrics and errors; ``setting`` is where the profile keeps it:
    ``"decoders.detection"``.
    """
    parser = argparse.ArgumentParser(description=f"Superlink's {service} worker.")
    parser.add_argument("--profile", default="tiny", help="name of a profile, or a path to one (default: tiny)")
    parser.add_argument("--log-level", default=os.environ.get("SUPERLINK_LOG_LEVEL", "INFO"), help="default: INFO")
    parsed = parser.parse_args(arguments)
    configure_logs(service, parsed.log_level)
    keep_freed_memory()
    try:
        profile = load_profile(find_profile(parsed.profile))
        settings = settings_of(profile)
        # For libraries that start threads of their own; the model thread sets its number itself.
        os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads))
        with exported_traces(service, profile.telemetry):
            return asyncio.run(_live(service, make, profile, settings, setting))
    except ConfigurationError as error:
        sys.stderr.write(f"superlink {service}: {error}\n")
        return EXIT_CONFIGURATION
    except KeyboardInterrupt:
        # Before the worker was ready; afterwards the signal drains it.
        return EXIT_INTERRUPTED_REQUESTS


async def _live(service: str, make: WorkerFactory, profile: Profile, settings: WorkerSettings, setting: str) -> int:
    began = time.monotonic()
    metrics = WorkerMetrics(service)
    server = GrpcServer(
        service, settings.address, drain_timeout_s=settings.drain_timeout_s, setting=f"{setting}.address"
    )
    worker = make(profile, metrics)
    worker.register(server)
    await server.start()
    try:
        host = settings.address.rpartition(":")[0]
        metrics.serve(host, settings.metrics_port, f"{setting}.metrics_port")
        await worker.start()
        # What is loaded stays. Without this, a worker of mmdet looked through it all once more at its end, which took
        # 1.5 s of computing in place of 0.2.
        gc.collect()
        gc.freeze()
        await server.set_ready(True)
        metrics.set_ready(True)
        logger.info("ready", extra={"address": server.address, "seconds": round(time.monotonic() - began, 2)})
        finished = await server.run_until_signalled(on_drain=worker.drain)
        metrics.set_ready(False)
    finally:
        await server.stop()
        await worker.close()
    logger.info("ended", extra={"all_requests_finished": finished})
    return 0 if finished else EXIT_INTERRUPTED_REQUESTS
