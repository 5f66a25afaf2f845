import asyncio
import threading
import time

import pytest
import torch

from services.runtime.model_thread import ModelThread


async def test_thread_settings_hold_inside_the_thread() -> None:
    outside = torch.get_num_threads()
    thread = ModelThread(threads=1)
    assert await thread.run(torch.get_num_threads) == 1
    assert await thread.run(torch.is_grad_enabled) is False
    assert torch.is_grad_enabled()
    torch.set_num_threads(outside)
    assert await thread.run(torch.get_num_threads) == 1
    thread.close()


async def test_one_thread_computes_with_one_core() -> None:
    def measure() -> float:
        left, right = torch.randn(400, 400), torch.randn(400, 400)
        cpu, wall = time.process_time(), time.perf_counter()
        while time.perf_counter() - wall < 0.2:
            left = torch.tanh(left @ right)
        return (time.process_time() - cpu) / (time.perf_counter() - wall)

    thread = ModelThread(threads=1)
    assert await thread.run(measure) < 1.4
    thread.close()


async def test_calls_run_one_after_the_other_in_the_same_thread() -> None:
    thread = ModelThread(threads=1)
    running = 0

    def work() -> tuple[int, int]:
        nonlocal running
        running += 1
        seen = running
        time.sleep(0.005)
        running -= 1
        return threading.get_ident(), seen

    results = await asyncio.gather(*(thread.run(work) for _ in range(8)))
    assert len({identity for identity, _ in results}) == 1
    assert all(seen == 1 for _, seen in results)
    assert threading.get_ident() not in {identity for identity, _ in results}
    thread.close()


async def test_errors_come_back() -> None:
    thread = ModelThread(threads=1)
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0)
    thread.close()
