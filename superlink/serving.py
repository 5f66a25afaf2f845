"""The asyncio gRPC server of every process: health, reflection, limits, error details and an orderly end.

The life of a server: ``start`` binds the port with health NOT_SERVING; ``set_ready`` turns health to SERVING after
warm-up; ``run_until_signalled`` waits for SIGTERM or SIGINT and then drains: health NOT_SERVING, no new calls, calls in
flight finish within the drain time, the port closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from superlink.channels import server_options
from superlink.configuration import ConfigurationError
from superlink.errors import SuperlinkError, abort
from superlink.logs import current_request_id
from superlink.served_calls import served_call

if TYPE_CHECKING:
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor

logger = logging.getLogger(__name__)

# Between NOT_SERVING and the closed door: clients that watch health turn elsewhere first.
HEALTH_NOTICE_S = 0.1
# Calls that a server takes at the same time; above that it refuses before it reads them. Queues are far shorter: this
# bounds the memory of a process that everybody asks at once.
MOST_CALLS = 1024
# gRPC's server pushback (proposal A6): a negative delay forbids the channel's retry policy to try again.
_DO_NOT_RETRY = ("grpc-retry-pushback-ms", "-1")

Servicer = TypeVar("Servicer")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class GrpcServer:
    """One server of one process; use it within one event loop."""

    def __init__(
        self, service: str, address: str, *, drain_timeout_s: float, setting: str = "", retries_for_caller: bool = False
    ) -> None:
        """Name the server.

        ``service`` is the process's name in errors and logs ("detection"), ``address`` is ``host:port`` (port 0: any
        free one), and ``setting`` is the profile key of the address, which errors name. ``retries_for_caller``: a call
        that fails is not to be repeated, because what it needed was tried again on the way. If the hop before did the
        same, every hop would multiply the attempts.
        """
        self.service = service
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._setting = setting or f"{service}.address"
        self._drain_timeout_s = drain_timeout_s
        self._guard = CallGuard(service, retries_for_caller)
        self._server = grpc.aio.server(
            options=server_options(), interceptors=[self._guard], maximum_concurrent_rpcs=MOST_CALLS
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._names: list[str] = [""]

    @property
    def address(self) -> str:
        """``host:port`` with the port that was really bound."""
        return f"{self._host}:{self._port}"

    @property
    def calls_in_flight(self) -> int:
        """Calls being answered now, health and reflection not counted."""
        return self._guard.calls_in_flight

    def add(self, register: Callable[[Servicer, Any], None], servicer: Servicer, full_name: str) -> None:
        """Add a service: ``add(decoder_pb2_grpc.add_DecoderServicer_to_server, servicer, "superlink.v1.Decoder")``."""
        register(servicer, self._server)
        self._names.append(full_name)

    async def start(self) -> None:
        """Bind and start answering, health NOT_SERVING. Raises ConfigurationError when the address cannot be bound."""
        check_address_is_free(self._host, self._port, self._setting)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._names[1:], health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        await self.set_ready(False)
        try:
            self._port = self._server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise ConfigurationError(f"{self._setting}: cannot listen on {self.address}: {error}") from error
        await self._server.start()

    async def set_ready(self, ready: bool) -> None:
        """Set the health of the server and of each of its services. Calls are refused until the first True."""
        self._guard.accepting = ready
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self._health.set(name, status)

    async def drain(self) -> bool:
        """Stop accepting and let calls in flight finish. Returns False if some had to be cut off."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(HEALTH_NOTICE_S)
        stopping = asyncio.create_task(self._server.stop(self._drain_timeout_s))
        # The server would wait for health watchers too, and these never end; so the calls are counted here.
        finished = await self._guard.wait_until_idle(self._drain_timeout_s)
        await self._server.stop(None)
        await stopping
        return finished

    async def run_until_signalled(self, on_drain: Callable[[], None] | None = None) -> bool:
        """Wait for SIGTERM or SIGINT and drain; a second signal cuts the drain short. Returns drain's answer.

        ``on_drain`` is called when the first signal arrives.
        """
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        impatient = asyncio.Event()

        def on_signal() -> None:
            (impatient if asked.is_set() else asked).set()

        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, on_signal)
        try:
            await asked.wait()
            logger.info("draining", extra={"calls_in_flight": self.calls_in_flight})
            if on_drain is not None:
                on_drain()
            draining = asyncio.create_task(self.drain())
            hurry = asyncio.create_task(impatient.wait())
            await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            if not draining.done():
                await self._server.stop(None)
                draining.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await draining
                return False
            return draining.result()
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    async def stop(self) -> None:
        """Stop at once; calls in flight are cancelled."""
        await self._server.stop(None)


class CallGuard(_Interceptor):
    """Counts the calls in flight, notes each, and turns whatever a handler raises into a status with details.

    A SuperlinkError goes out as it is, with the service's name where it has none. Anything else is a bug: it is logged
    with its traceback under the request id, and the caller gets INTERNAL without the inner text.
    """

    def __init__(self, service: str, retries_for_caller: bool) -> None:
        self._service = service
        self._behind_errors = (_DO_NOT_RETRY,) if retries_for_caller else ()
        self._idle = asyncio.Event()
        self._idle.set()
        self.calls_in_flight = 0
        self.accepting = False

    async def wait_until_idle(self, timeout_s: float) -> bool:
        """True as soon as no call is in flight; False if that took longer than ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap unary-unary and unary-stream handlers; the contracts have no others."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming or handler_call_details.method.startswith("/grpc."):
            return handler
        name = handler_call_details.method
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._guard_stream(name, handler.unary_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._guard_unary(name, handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.calls_in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.calls_in_flight -= 1
            if self.calls_in_flight == 0:
                self._idle.set()

    def _guard_unary(
        self, name: str, method: Callable[[Any, Any], Awaitable[Any]]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def guarded(request: Any, context: Context) -> Any:
            with self._counted():
                try:
                    with served_call(name, request, context):
                        self._check_accepting()
                        return await method(request, context)
                except Exception as error:
                    await self._abort(context, error)

        return guarded

    def _guard_stream(
        self, name: str, method: Callable[[Any, Any], AsyncIterator[Any]]
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._counted():
                try:
                    with served_call(name, request, context):
                        self._check_accepting()
                        async with contextlib.aclosing(method(request, context)) as events:  # type: ignore[type-var]
                            async for event in events:
                                yield event
                except Exception as error:
                    await self._abort(context, error)

        return guarded

    def _check_accepting(self) -> None:
        if not self.accepting:
            raise SuperlinkError(
                "not_ready",
                f"The {self._service} service is still starting.",
                status=grpc.StatusCode.UNAVAILABLE,
                retry_after_ms=500,
            )

    async def _abort(self, context: Context, error: Exception) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        request_id = current_request_id.get()
        if not isinstance(error, SuperlinkError):
            error = self._unexpected(error, request_id)
        error = error.passed_on_by(self._service)
        error.request_id = error.request_id or request_id
        # A server that is still starting has tried nothing.
        await abort(context, error, *(self._behind_errors if self.accepting else ()))

    def _unexpected(self, error: Exception, request_id: str) -> SuperlinkError:
        if isinstance(error, TimeoutError):
            return SuperlinkError(
                "deadline_exceeded",
                f"The {self._service} service ran out of time.",
                status=grpc.StatusCode.DEADLINE_EXCEEDED,
            )
        logger.error("unhandled error", exc_info=error)
        return SuperlinkError(
            "internal",
            f"The {self._service} service failed on this request; its log has the reason under request {request_id}.",
            status=grpc.StatusCode.INTERNAL,
        )


def deadline_of(context: Context) -> float:
    """When the caller stops waiting, as ``time.monotonic()`` seconds; infinite when it named no deadline."""
    remaining = context.time_remaining()
    return float("inf") if remaining is None else time.monotonic() + float(remaining)


def check_address_is_free(host: str, port: int, setting: str) -> None:
    """Raise ConfigurationError, naming the port and what to do, when nothing can listen on ``host:port``."""
    if port == 0:
        return
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # Connections of a server that just ended must not keep its port from the next one.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except socket.gaierror as error:
        raise ConfigurationError(f"{setting}: unknown host {host!r} ({error.strerror}).") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"{setting}: port {port} on {host} is in use by another process. Stop that process "
                f"(`ss -ltnp 'sport = :{port}'` names it), or choose another port under {setting} in the profile."
            ) from error
        raise ConfigurationError(
            f"{setting}: cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}). "
            f"Choose another address under {setting} in the profile."
        ) from error
