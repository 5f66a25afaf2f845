"""The ``superlink`` command."""
