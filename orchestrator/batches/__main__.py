"""``python -m orchestrator.batches``: work on the batches of a profile."""

from __future__ import annotations

import argparse
import sys

from orchestrator.batches.worker import SERVICE, serve
from superlink.configuration import ConfigurationError
from superlink.logs import configure_logs
from superlink.profile import find_profile, load_profile


def main() -> int:
    """Returns the exit status: 0 after an orderly stop, 2 when the configuration is at fault."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.batches", description="Work on batches.")
    parser.add_argument("--profile", default="tiny", help="name of a profile, or a YAML file (default: tiny)")
    arguments = parser.parse_args()
    configure_logs(SERVICE)
    try:
        return serve(load_profile(find_profile(arguments.profile)))
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2


if __name__ == "__main__":
    sys.exit(main())
