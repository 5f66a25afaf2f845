"""The gateway process: binds its port, runs uvicorn, and ends in order."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from gateway.application import create_application
from superlink.configuration import ConfigurationError
from superlink.profile import GatewaySettings, Profile, is_loopback

logger = logging.getLogger(__name__)

CONNECTION_BACKLOG = 1024
# Longer than clients and balancers keep idle connections, a minute at most: a request that is sent at the moment when
# the server closes one is reset. uvicorn's default is 5 s, which is httpx's, too.
KEEP_ALIVE_S = 75


def bind(settings: GatewaySettings) -> socket.socket:
    """A listening socket. Raises ConfigurationError that says how to choose another port when this one is taken."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # TCP by name, because asyncio turns Nagle's algorithm off only for sockets that say so. With it, every answer but
    # the first of a connection waited 40 ms until the client had acknowledged its headers.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Connections of a gateway that just ended must not keep its port from the next one.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        # Binding alone does not notice every listener.
        listener.listen(CONNECTION_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            reason = f"port {settings.port} on {settings.host} is in use by another process. Stop that process"
        else:
            reason = f"cannot listen on {settings.host}:{settings.port} ({os.strerror(error.errno or 0)}). Stop"
        raise ConfigurationError(
            f"gateway.port: {reason}, or choose another port: --port, or gateway.port in the profile."
        ) from error
    return listener


def configuration_of(application: FastAPI, drain_timeout_s: float) -> uvicorn.Config:
    """How uvicorn serves ``application``."""
    return uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        # Unlimited by default, and then an open stream would keep the process for ever.
        timeout_graceful_shutdown=max(1, round(drain_timeout_s)),
    )


def run(profile: Profile) -> None:
    """Serve until SIGTERM or SIGINT: then no new connections, requests in flight finish, and the process ends.

    Raises ConfigurationError when the port cannot be had, or API keys are needed and there is no Redis for them.
    """
    application = create_application(profile)
    listener = bind(profile.gateway)
    # Below this it writes down ids of sessions, with which others could take part in them.
    logging.getLogger("mcp").setLevel(logging.WARNING)
    server = uvicorn.Server(configuration_of(application, profile.orchestrator.drain_timeout_s))

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        server.should_exit = True

    # While it serves, uvicorn has handlers of its own; afterwards it raises the signal again for whoever had it before,
    # and an orderly end is exit status 0.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    logger.info(
        "listening", extra={"host": profile.gateway.host, "port": profile.gateway.port, "profile": profile.name}
    )
    if not profile.gateway.keys.required:
        reach = "this machine" if is_loopback(profile.gateway.host) else "the network"
        logger.warning(f"no API key is needed: whoever can reach the gateway from {reach} is answered")
    server.run(sockets=[listener])
    logger.info("stopped")
