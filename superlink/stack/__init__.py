"""A deployment on this machine: ``superlink up`` and what belongs to it."""

from superlink.stack.errors import StackError
from superlink.stack.local_stack import LocalStack
from superlink.stack.supervisor import StackEvent

__all__ = ["LocalStack", "StackError", "StackEvent"]
