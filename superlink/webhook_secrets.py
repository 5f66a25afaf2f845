"""The secret that signs webhooks: from the environment or the profile, in the form of Standard Webhooks."""

from __future__ import annotations

import base64
import binascii
import os

from superlink.configuration import ConfigurationError
from superlink.profile import Profile

VARIABLE = "SUPERLINK_WEBHOOK_SECRET"
PREFIX = "whsec_"
_LEAST_BYTES = 16


def with_webhook_secret(profile: Profile) -> Profile:
    """``profile`` with the secret that holds; empty where there is none. Raises ConfigurationError for a bad one."""
    batches = profile.batches
    secret = os.environ.get(VARIABLE, "").strip() or batches.webhooks.secret
    if secret:
        secret_bytes(secret)
    webhooks = batches.webhooks.model_copy(update={"secret": secret})
    return profile.model_copy(update={"batches": batches.model_copy(update={"webhooks": webhooks})})


def secret_bytes(secret: str) -> bytes:
    """The key of the signature. Raises ConfigurationError."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(PREFIX) or len(key) < _LEAST_BYTES:
        raise ConfigurationError(
            f"batches.webhooks.secret (or {VARIABLE}) is {PREFIX} and at least {_LEAST_BYTES} bytes in base64. "
            'Make one: python -c "import base64, secrets; '
            "print('whsec_' + base64.b64encode(secrets.token_bytes(32)).decode())\""
        )
    return key
