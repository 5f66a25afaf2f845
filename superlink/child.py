"""Run one process of the stack so that it never outlives the process that started it.

``python -m superlink.child FD MODULE [ARGUMENT ...]`` runs MODULE as ``__main__``. FD is the reading end of a pipe
whose writing end only the parent holds: when the parent is gone, however it went, the pipe closes and this process
stops.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

# Time to finish requests in flight once the parent is gone.
ORPHAN_GRACE_S = 10.0


def main() -> None:
    """Follow the parent's pipe and run the module."""
    lifeline = int(sys.argv[1])
    module = sys.argv[2]
    sys.argv = [module, *sys.argv[3:]]
    threading.Thread(target=_stop_with_parent, args=(lifeline,), name="lifeline", daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _stop_with_parent(lifeline: int) -> None:
    # Nothing is ever written: reading returns only when the last writer is gone.
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
