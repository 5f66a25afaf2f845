"""Threads that wait for the store of files, apart from those that compute.

A store that does not answer holds a thread for as long as it is waited for. In asyncio's own few threads it would hold
up whatever else they do: requests that need no file would wait with those that do.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

# They mostly wait.
MOST_THREADS = 32

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class StorageThreads:
    """Of one gateway."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MOST_THREADS, "storage")

    async def run(
        self, function: Callable[Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        """What ``asyncio.to_thread`` does, in these threads."""
        call = partial(contextvars.copy_context().run, function, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
