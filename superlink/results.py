"""What the gateway answers, as typed values. Unknown fields of newer gateways are ignored."""

from __future__ import annotations
