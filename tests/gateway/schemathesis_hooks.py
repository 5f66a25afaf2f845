"""What schemathesis has to know beyond the OpenAPI document: what images are, and why a right request may be refused.

Loaded by schemathesis itself, by the variable SCHEMATHESIS_HOOKS.
"""

from __future__ import annotations

import base64
import io
import json

import schemathesis
from hypothesis import strategies as st
from PIL import Image

# Refusals for what no schema can say: the content of an image, places in it, what is deployed, and rules for several
# fields together. Never for a field of its own: that is `invalid_request`, and a defect of the document.
BEYOND_SCHEMAS = frozenset(
    {
        *("conflicting_fields", "empty_prompt", "prompt_too_long", "too_many_phrases", "unknown_skeleton"),
        *("invalid_conversation", "invalid_tool_result", "unknown_function", "unsupported_schema"),
        *("no_image", "image_missing", "too_many_images", "invalid_data_url", "unsupported_image"),
        *("invalid_region", "empty_region", "region_outside_image", "region_without_image", "too_many_regions"),
        *("invalid_mask", "invalid_option", "storage_quota_exceeded", "idempotency_key_reused"),
        *("webhooks_disabled", "webhook_refused"),
    }
)


def image_address(format_name: str, side: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (90, 140, 60)).save(buffer, format=format_name)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{format_name.lower()};base64,{encoded}"


IMAGES = [image_address(name, side) for name in ("PNG", "JPEG", "WEBP") for side in (64, 96)]

schemathesis.openapi.format("image-address", st.sampled_from(IMAGES))


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext,
    failure: Exception,
    case: schemathesis.Case,
    response: schemathesis.Response,
) -> bool:
    """False: not a failure."""
    if type(failure).__name__ != "RejectedPositiveData":
        return True
    return json.loads(response.content).get("code") not in BEYOND_SCHEMAS
