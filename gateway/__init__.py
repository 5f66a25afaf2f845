"""The REST edge: OpenAI-compatible chat, detection, probes and metrics in front of the orchestrator."""
