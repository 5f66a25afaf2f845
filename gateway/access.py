"""Who may ask: requests need an API key and are held to its limits."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.batch_traffic import is_of_batch
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.playground.pages import PLAYGROUND
from gateway.problems import Problem, ProblemResponse
from superlink.api_keys import ApiKeys, key_of
from superlink.errors import SuperlinkError
from superlink.profile import KeyLimits

# Everything else needs a key, what is added later as well. Probes and metrics are asked by machines that have none, and
# the description of the API says nothing about a deployment's data. The playground sends its visitor's key.
OPEN_PATHS = frozenset(
    {
        *("/livez", "/healthz", "/readyz", "/startupz", "/metrics"),
        *("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"),
    }
)


class Access:
    """Refuses requests without a valid key (401), over a limit (429), or when keys cannot be looked up (503).

    It does so before anything of the body is read.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        limits: Limits,
        defaults: KeyLimits,
        batch_share: float,
        metrics: Metrics,
    ) -> None:
        """``batch_share``: the part of a key's limits that its batches may use."""
        self._app = app
        self._batch_share = batch_share
        self._keys = keys
        self._limits = limits
        self._defaults = defaults
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            key = await self._keys.verify(key_of(Headers(scope=scope).get("authorization", "")))
            # The log has the key of requests over a limit, too.
            scope["state"]["api_key_id"] = key.id
            limits = key.limits(self._defaults)
            if is_of_batch(scope):
                # What is left of them is for the key's live requests.
                limits = limits.shared(self._batch_share)
            slot = await self._limits.admit(key.id, limits)
        except SuperlinkError as error:
            self._metrics.refusals.labels(error.code).inc()
            response = ProblemResponse(Problem.from_error(error, scope["state"]["request_id"]))
            if response.status_code == 401:
                response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, send)
            return

        async def release_and_send(message: Message) -> None:
            # Before the client knows that it has everything: its next request must not meet the slot of this one.
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                await slot.release()
            await send(message)

        try:
            await self._app(scope, receive, release_and_send)
        finally:
            await slot.release()


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path == PLAYGROUND or path.startswith(f"{PLAYGROUND}/")
