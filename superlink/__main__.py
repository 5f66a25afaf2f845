"""``python -m superlink``: the same as the ``superlink`` command."""

from superlink.cli.main import main

main()
