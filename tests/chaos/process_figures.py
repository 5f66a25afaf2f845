"""What processes hold: memory and descriptors, as Linux tells."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from superlink.stack.processes import resident_bytes
from tests.chaos.stack import ChaosStack

MIB = 1024 * 1024


@dataclass(frozen=True)
class Held:
    """By one process at one moment."""

    resident_bytes: int
    descriptors: int


def held_by(stack: ChaosStack) -> Mapping[str, Held]:
    """By every process that runs, and by the one that supervises them."""
    pids = {name: process.pid for name, process in stack.processes().items()}
    held = {}
    for name, pid in {**pids, "superlink up": stack.supervisor}.items():
        memory = resident_bytes(pid) if pid is not None else None
        if pid is not None and memory is not None:
            held[name] = Held(memory, len(os.listdir(Path(f"/proc/{pid}/fd"))))
    return held
