"""The workers and the trainer."""

import superlink.core_logs  # noqa: F401
