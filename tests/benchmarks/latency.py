"""How long one user waits, and where the time goes: ``superlink bench latency`` with its figures kept.

    python tests/benchmarks/latency.py --json tests/benchmarks/results/latency.json

Starts the stack itself unless ``--url`` names a gateway. Options are those of the command.
"""

from __future__ import annotations

import sys

from superlink.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["bench", "latency"]
    main()
