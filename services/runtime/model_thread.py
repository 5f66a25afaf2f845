"""The one thread that touches the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")


def limit_torch_threads(threads: int) -> None:
    """Give torch operations of the calling thread ``threads`` threads and no autograd.

    Both settings belong to the thread that makes them: set in the main thread they do not hold in an executor's thread,
    where the same batch then took eight times as long on two cores.
    """
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)


class ModelThread:
    """Runs functions one after the other in a single thread, so that the event loop never waits for torch."""

    def __init__(self, threads: int) -> None:
        """``threads``: how many threads one torch operation may use."""
        self._executor = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="model", initializer=limit_torch_threads, initargs=(threads,)
        )

    async def run(
        self, function: Callable[Parameters, Value], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Value:
        """Call ``function`` in the model thread. A cancelled caller goes on at once; the call itself ends by itself."""
        return await asyncio.wrap_future(self._executor.submit(function, *args, **kwargs))

    def close(self) -> None:
        """Wait for what is running; what has not begun is dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)
