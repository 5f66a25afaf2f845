"""Import this before grpc: keeps gRPC's core from writing to standard error.

Its lines are plain text, no setting of Python's logging reaches them, and ours are JSON. What they report reaches the
callers as errors, too. The core reads the variable while it is imported, so setting it later has no effect.
"""

import os

# To see the lines all the same, set it to INFO or ERROR.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
