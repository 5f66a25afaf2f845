"""The answer engine: consumes the MLLM stream, forms tool calls, calls decoders, merges results."""

import superlink.core_logs  # noqa: F401
