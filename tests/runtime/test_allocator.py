"""Memory that is given back after a batch stays with the process for the next one."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Blocks as large as a model's activations, in a thread of its own; prints how many page faults a later batch costs.
BATCHES = """
import resource, sys, threading
import numpy as np
from services.runtime.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()

def batch():
    blocks = [np.ones(3 * 1024 * 1024, np.uint8) for _ in range(60)]

def batches():
    batch()
    batch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        batch()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)

thread = threading.Thread(target=batches)
thread.start()
thread.join()
"""


def faults_a_batch(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", BATCHES, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about glibc")
def test_a_batch_finds_the_memory_of_the_one_before() -> None:
    assert faults_a_batch("kept") < 100
    assert faults_a_batch("as usual") > 1000
