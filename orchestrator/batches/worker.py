"""The process that works on batches: a Celery worker, a keeper beside it, and an eye on both.

The steps are done in child processes of the worker. Nothing of Redis and of the artifact store is opened before they
are forked: each has connections of its own.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import grpc
import prometheus_client
from celery import Celery, bootsteps  # type: ignore[import-untyped]
from celery.apps.worker import Worker  # type: ignore[import-untyped]
from celery.signals import (  # type: ignore[import-untyped]
    setup_logging,
    worker_process_init,
    worker_process_shutdown,
)
from celery.worker import state as celery_state  # type: ignore[import-untyped]
from celery.worker.consumer import Consumer  # type: ignore[import-untyped]
from kombu.exceptions import OperationalError as BrokerError

from orchestrator.batches.celery_app import HARD_LIMIT_S, QUEUE, SOFT_LIMIT_S, TASK, make_celery_app
from orchestrator.batches.claims import Claims, Step
from orchestrator.batches.keeper import Keeper
from orchestrator.batches.metrics import Metrics
from orchestrator.batches.shards import Tools
from orchestrator.batches.steps import do_step
from superlink.artifacts import open_store
from superlink.batch_store import BatchName, open_batches
from superlink.configuration import ConfigurationError
from superlink.errors import SuperlinkError
from superlink.logs import configure_logs
from superlink.profile import Profile
from superlink.redis_connection import URL_VARIABLE, redis_failures, redis_url_of
from superlink.serving import check_address_is_free
from superlink.telemetry import exported_traces
from superlink.webhook_secrets import with_webhook_secret

logger = logging.getLogger(__name__)

SERVICE = "batches"
BEAT_EVERY_S = 1.0
# A loop that has not turned for so long consumes nothing, although its process is there.
BEAT_LASTS_S = 10.0
# After so long without a step taken although some wait, and Redis answers, the process gives up on itself.
STALL_S = 30.0
PARENT_LOOK_EVERY_S = 0.5
# Steps that end a batch come before shards of others.
_SHARD_PRIORITY, _OTHER_PRIORITY = 6, 0


def serve(profile: Profile) -> int:
    """Run until SIGTERM or SIGINT, then drain. Returns the exit status.

    Raises ConfigurationError where the profile names no Redis, or a port is in use.
    """
    url = redis_url_of(profile.gateway)
    if not url:
        raise ConfigurationError(
            f"batches: work is handed out by Redis, and none is named. Set gateway.redis_url, or {URL_VARIABLE}."
        )
    profile = with_webhook_secret(profile)
    # Says early what is wrong with the address.
    open_store(profile)
    app = make_celery_app(url, profile.batches)
    metrics = Metrics()
    draining = multiprocessing.Event()
    pulse = _Pulse()
    _register_task(app, profile, url, draining)
    app.steps["consumer"].add(_beat_of(pulse))

    def keep_logs(**_: object) -> None:
        # Ours; with a receiver, Celery leaves them alone. A line for every step would say nothing.
        for name in ("celery.app.trace", "celery.worker.strategy", "httpx"):
            logging.getLogger(name).setLevel(logging.WARNING)

    setup_logging.connect(keep_logs, weak=False)
    with ExitStack() as stack:
        if profile.batches.metrics_port:
            stack.enter_context(_served_metrics(profile, metrics))
        watch = _Watch(profile, url, app, pulse, metrics)
        worker = _worker_class(app, draining)(
            hostname=f"{SERVICE}@{socket.gethostname()}",
            pool="prefork",
            concurrency=profile.batches.concurrency,
            queues=[QUEUE],
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            loglevel="INFO",
            optimization="fair",
            quiet=True,
        )
        pulse.on_first_beat = watch.start
        stack.callback(watch.stop)
        worker.start()
    logger.info("stopped")
    return int(worker.exitcode or 0)


def _worker_class(app: Celery, draining: multiprocessing.synchronize.Event) -> type[Worker]:
    """Celery's worker with signal handlers of our own: its own ones print, and leave running steps to their end."""

    class DrainingWorker(app.Worker):  # type: ignore[misc]
        def install_platform_tweaks(self, worker: Worker) -> None:  # noqa: ARG002
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._drain)

        def _drain(self, *_: object) -> None:
            draining.set()
            # The consumer looks at it between two events.
            celery_state.should_stop = 0

    return DrainingWorker


def _register_task(app: Celery, profile: Profile, url: str, draining: multiprocessing.synchronize.Event) -> None:
    held: list[Tools] = []
    traces = ExitStack()

    def begin(**_: object) -> None:
        configure_logs(SERVICE)
        _end_with_parent()
        traces.enter_context(exported_traces(SERVICE, profile.telemetry))
        held[:] = [
            Tools(
                profile=profile,
                artifacts=open_store(profile),
                batches=open_batches(profile),
                claims=Claims(url),
                gateway_url=gateway_url_of(profile),
                is_draining=draining.is_set,
            )
        ]

    def end(**_: object) -> None:
        traces.close()

    def work(owner: str, batch_id: str, what: str) -> None:
        do_step(Step(BatchName(owner, batch_id), what), held[0])

    worker_process_init.connect(begin, weak=False)
    worker_process_shutdown.connect(end, weak=False)
    app.task(name=TASK)(work)


def gateway_url_of(profile: Profile) -> str:
    """Where lines are sent."""
    if profile.batches.gateway_url:
        return profile.batches.gateway_url.rstrip("/")
    # What listens everywhere is not an address to go to.
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104
    host = anywhere.get(profile.gateway.host, profile.gateway.host_in_url)
    return f"http://{host}:{profile.gateway.port}"


def _end_with_parent() -> None:
    """Children of a worker that was killed would go on with their step, and then wait for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_LOOK_EVERY_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class _Pulse:
    """When the loop that consumes has turned last."""

    def __init__(self) -> None:
        self.beat_at = 0.0
        self.on_first_beat: Callable[[], None] = lambda: None

    def beat(self) -> None:
        if not self.beat_at:
            self.on_first_beat()
        self.beat_at = time.monotonic()

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() - self.beat_at < BEAT_LASTS_S


def _beat_of(pulse: _Pulse) -> type[bootsteps.StartStopStep]:
    """A part of Celery's consumer that beats from its own loop."""

    class Beat(bootsteps.StartStopStep):  # type: ignore[misc]
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, consumer: Consumer) -> None:
            pulse.beat()
            self._timer = consumer.timer.call_repeatedly(BEAT_EVERY_S, pulse.beat)

        def stop(self, consumer: Consumer) -> None:  # noqa: ARG002
            if getattr(self, "_timer", None) is not None:
                self._timer.cancel()

    return Beat


class _Watch:
    """The threads beside Celery: the keeper, and one that says whether steps are taken.

    It ends a process that takes none: Celery workers that have lost their Redis may stay connected and consume nothing.
    """

    def __init__(self, profile: Profile, url: str, app: Celery, pulse: _Pulse, metrics: Metrics) -> None:
        self._profile = profile
        self._url = url
        self._app = app
        self._pulse = pulse
        self._metrics = metrics
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def start(self) -> None:
        """Celery's children have been forked by now."""
        keeper = Keeper(self._profile, open_batches(self._profile), Claims(self._url), self._publish, self._metrics)
        self._threads = [
            threading.Thread(target=keeper.run, args=(self._stopping,), name="keeper", daemon=True),
            threading.Thread(target=self._watch, name="watch", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        logger.info("ready", extra={"concurrency": self._profile.batches.concurrency})

    def stop(self) -> None:
        """Return when the threads have ended, or hang."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(5.0)

    def _publish(self, step: Step) -> None:
        try:
            with redis_failures():
                self._app.send_task(
                    TASK,
                    args=[step.batch.owner, step.batch.id, step.what],
                    queue=QUEUE,
                    priority=_SHARD_PRIORITY if step.is_shard else _OTHER_PRIORITY,
                    soft_time_limit=SOFT_LIMIT_S,
                    time_limit=HARD_LIMIT_S,
                    ignore_result=True,
                )
        except BrokerError as error:
            raise _unpublished() from error

    def _watch(self) -> None:
        claims = Claims(self._url)
        slots = self._profile.batches.concurrency
        taken, taken_at = 0, time.monotonic()
        while not self._stopping.wait(2.0):
            try:
                if self._pulse.is_fresh:
                    claims.note_worker(self._name, slots)
                waiting = claims.waiting_messages()
            except SuperlinkError:
                # There is nothing to consume from.
                self._metrics.consumes.set(0)
                taken_at = time.monotonic()
                continue
            self._metrics.consumes.set(self._pulse.is_fresh)
            total = sum(celery_state.total_count.values())
            is_idle = self._pulse.is_fresh and not waiting
            if total != taken or is_idle or celery_state.active_requests:
                taken, taken_at = total, time.monotonic()
            elif time.monotonic() - taken_at > STALL_S:
                logger.critical("steps wait and none is taken; this process ends", extra={"waiting": waiting})
                os._exit(1)
        with suppress(SuperlinkError):
            claims.forget_worker(self._name, slots)


def _unpublished() -> SuperlinkError:
    return SuperlinkError(
        "redis_unavailable", "The broker does not take steps.", status=grpc.StatusCode.UNAVAILABLE, service="redis"
    )


@contextmanager
def _served_metrics(profile: Profile, metrics: Metrics) -> Iterator[None]:
    host, port = profile.gateway.host, profile.batches.metrics_port
    check_address_is_free(host, port, "batches.metrics_port")
    server, thread = prometheus_client.start_http_server(port, host, metrics.registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
