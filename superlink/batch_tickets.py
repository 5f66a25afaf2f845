"""Tickets: by which the gateway knows requests of a batch for its owner's, whose API key nobody has kept.

A worker leaves a ticket in Redis, with the id of the owner's key, and sends it in the key's place. It holds for a
minute and is renewed while a shard is worked on. Whoever may write to that Redis could make API keys as well.
"""

from __future__ import annotations

import hashlib
import re
import secrets

# On requests of batches, with the batch's id: the gateway lets them in only where live ones leave room.
BATCH_HEADER = "x-superlink-batch"

_TICKET = re.compile(r"slb_[0-9a-f]{48}")


def fresh_ticket() -> str:
    """It cannot be guessed."""
    return f"slb_{secrets.token_hex(24)}"


def is_ticket(key: str) -> bool:
    """Whether ``key`` has the form of a ticket; no API key has."""
    return _TICKET.fullmatch(key) is not None


def ticket_key(ticket: str) -> str:
    """Where the id of the owner's API key lies in Redis."""
    return f"superlink:batches:ticket:{hashlib.sha256(ticket.encode()).hexdigest()}"
