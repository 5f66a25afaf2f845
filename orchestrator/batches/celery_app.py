"""The Celery application of a deployment: how steps of batches reach the workers.

What was measured with Celery and Redis, and why the settings are these, is in docs/batches.md.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from celery import Celery  # type: ignore[import-untyped]

from superlink.profile import BatchSettings

# The one task: a step of a batch.
TASK = "superlink.batches.work"
QUEUE = "batches"
# Of all that Celery keeps in Redis.
KEY_PREFIX = "superlink:celery:"
PRIORITY_STEPS = (0, 3, 6, 9)
# After these a step is interrupted, and after these its process is killed.
SOFT_LIMIT_S, HARD_LIMIT_S = 1740, 1800
# Above the hard limit, else a step that is being done would be handed to a second worker. What a worker that died held
# is not waited for so long: the keeper notices by the claim of the step.
VISIBILITY_TIMEOUT_S = 2100


def make_celery_app(redis_url: str, settings: BatchSettings) -> Celery:
    """An application that publishes to the Redis at ``redis_url`` and consumes from there."""
    app = Celery("superlink-batches", broker=broker_url(redis_url))
    app.conf.update(
        broker_transport_options={
            "global_keyprefix": KEY_PREFIX,
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            # What is past its visibility timeout is looked for every 2 s, not every 100 s.
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            "queue_order_strategy": "priority",
            "priority_steps": list(PRIORITY_STEPS),
            # Without it a dead connection blocks a publication for ever.
            "socket_timeout": 10,
            "socket_connect_timeout": 3,
        },
        visibility_timeout=VISIBILITY_TIMEOUT_S,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A Redis that answers and takes nothing, because its memory or its disk is full, is waited for like one that
        # is away.
        broker_channel_error_retry=True,
        # Publications are tried again by the keeper, which knows whether they are still wanted.
        task_publish_retry=False,
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_soft_time_limit=SOFT_LIMIT_S,
        task_time_limit=HARD_LIMIT_S,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_max_memory_per_child=settings.max_memory_bytes // 1024 or None,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        # A step goes on while Redis is away; its effect is kept in the artifact store.
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    return app


def broker_url(redis_url: str) -> str:
    """``redis_url`` as Celery writes it: sockets have a scheme of their own."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    options: dict[str, Any] = parse_qs(parts.query)
    [database] = options.get("db", ["0"])
    access = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"redis+socket://{access}{unquote(parts.path)}?virtual_host={database}"
