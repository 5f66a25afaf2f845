"""The REST edge: OpenAI-compatible chat, detection, probes and metrics in front of the orchestrator."""

import superlink.core_logs  # noqa: F401
