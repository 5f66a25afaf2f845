"""What the OpenAPI document shows: requests that can be sent as they are, and what comes back."""

from __future__ import annotations

from typing import Any

# A dot on a meadow, 96 x 64 pixels.
IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAGAAAABAAgMAAACYWpqdAAAACVBMVEV4tFrIeCj///9MIHC9AAAAqElEQVR42u2UMQ7CMAxF"
    "X0vZs3TvUXIEBrglYuzMfbLkABGwYNM4qYhUMSDw4lgv/9vOEPjHd0enpxPhugC9HEYYqYC9B44V4HJfBZ0H4FCAIUsL4OyMAjx5FqA3XbmHjT5vOrQqXP"
    "l0bxSr4DW+32r1WbADIExSz1t7RCnvrYokZWpVqHU0e+gis7WKdigByfYWq6fXpdw8GidV3MIE59pbBQg/9fs8AF7cGmh2v1Q5AAAAAElFTkSuQmCC"
)
FILE_ID = "file-01a21e318d4da644a0c25a5d2109"

CHAT = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": IMAGE}},
                {"type": "text", "text": "How many dogs are there?"},
            ],
        }
    ],
}
ANSWER = {"image": IMAGE, "prompt": "How many dogs are there?", "masks": "png", "overlay": True}
DETECT = {"image": IMAGE, "categories": ["dog", "cat"], "score_threshold": 0.3}
SEGMENT = {"image": IMAGE, "categories": ["dog", "cat"], "regions": [{"points": [[40, 36]]}]}
POSE = {"image": IMAGE, "categories": ["person"], "keypoints": ["nose", "left wrist"]}
GENERATION = {"prompt": "a cat beside a tree", "n": 1, "superlink": {"seed": 3}}
EDIT = {"image": IMAGE, "prompt": "make the dog blue"}

_MODEL = "superlink-tiny"
_SIZE = {"width": 96, "height": 64}
_BOX = [20.0, 18.0, 41.0, 37.0]
_MASK = {"size": [64, 96], "counts": "Vh[13l10001O0000000000000000000000001N2O1Nbb2"}
_USAGE = {
    "prompt_tokens": 41,
    "completion_tokens": 9,
    "total_tokens": 50,
    "prompt_tokens_details": {"image_tokens": 25},
}
_TIMINGS = [
    {"service": "mllm", "phase": "compute", "milliseconds": 38.8},
    {"service": "gateway", "phase": "total", "milliseconds": 130.4},
]
_MADE = {"b64_json": IMAGE.partition(",")[2], **_SIZE, "seed": 3}
_FOUND = {"bbox": _BOX, "score": 0.97}

_TYPED = {"model": _MODEL, "image": _SIZE, "usage": _USAGE, "timings": _TIMINGS}
_DOG = {"phrase": "dog", "found": True, "score": 0.97}
_CAT = {"phrase": "cat", "found": False, "score": 0.02}

CHAT_RESPONSE = {
    "id": "chatcmpl-4f0c9a1b2c3d4e5f4f0c9a1b2c3d4e5f",
    "object": "chat.completion",
    "created": 1764000000,
    "model": _MODEL,
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "There is one dog.",
                "refusal": None,
                "superlink": {
                    "tool_calls": [
                        {
                            "id": "call_0",
                            "tool": "detection",
                            "status": "completed",
                            "phrases": [
                                {
                                    "phrase": "dog",
                                    "span": {"start": 13, "end": 16},
                                    "route": "[DET]",
                                    "log_probability": -0.01,
                                    "found": True,
                                    "score": 0.97,
                                    "detections": [_FOUND],
                                }
                            ],
                            "error": None,
                            "timings": [],
                        }
                    ],
                    "observations": [],
                    "rounds": 0,
                    "timings": _TIMINGS,
                    "image": _SIZE,
                },
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": _USAGE,
}
ANSWER_RESPONSE = {
    **_TYPED,
    "text": "There is one dog.",
    "finish_reason": "stop",
    "categories": [{**_DOG, "tool": "detection", "span": {"start": 13, "end": 16}}],
    "detections": [{"category": "dog", "category_index": 0, **_FOUND}],
    "images": [],
    "failures": [],
    "overlay": IMAGE,
}
DETECT_RESPONSE = {
    **_TYPED,
    "categories": [_DOG, _CAT],
    "detections": [{"category": "dog", "category_index": 0, **_FOUND}],
}
SEGMENT_RESPONSE = {
    **_TYPED,
    "categories": [_DOG, _CAT],
    "detections": [{"category": "dog", "category_index": 0, **_FOUND, "segmentation": _MASK}],
}
POSE_RESPONSE = {
    **_TYPED,
    "categories": [{"phrase": "person", "found": True, "score": 0.97, "bones": [["nose", "left wrist"]]}],
    "detections": [
        {
            "category": "person",
            "category_index": 0,
            **_FOUND,
            "keypoints": [
                {"name": "nose", "x": 41.2, "y": 18.9, "score": 0.91},
                {"name": "left wrist", "x": 43.0, "y": 36.8, "score": 0.12},
            ],
        }
    ],
}
IMAGES_RESPONSE = {
    "created": 1764000000,
    "model": _MODEL,
    "data": [_MADE],
    "output_format": "png",
    "usage": {
        "input_tokens": 21,
        "output_tokens": 0,
        "total_tokens": 21,
        "input_tokens_details": {"text_tokens": 21, "image_tokens": 0},
    },
    "timings": _TIMINGS,
}
FILE = {
    "id": FILE_ID,
    "object": "file",
    "bytes": 4096,
    "created_at": 1764000000,
    "expires_at": 1766592000,
    "filename": "requests.jsonl",
    "purpose": "batch",
    "status": "processed",
}
FILE_LIST = {"object": "list", "data": [FILE], "first_id": FILE_ID, "last_id": FILE_ID, "has_more": False}
FILE_DELETED = {"id": FILE_ID, "object": "file", "deleted": True}
BATCH_ID = "batch_01a21e318d4da644a0c25a5d2109"
BATCH_ORDER = {"input_file_id": FILE_ID, "endpoint": "/v1/detect", "completion_window": "24h"}
BATCH = {
    "id": BATCH_ID,
    "object": "batch",
    "endpoint": "/v1/detect",
    "errors": None,
    "input_file_id": FILE_ID,
    "completion_window": "24h",
    "status": "in_progress",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": 1764000000,
    "in_progress_at": 1764000001,
    "expires_at": 1764086400,
    "finalizing_at": None,
    "completed_at": None,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "request_counts": {"total": 1000, "completed": 420, "failed": 3},
    "metadata": {"run": "night"},
}
BATCH_LIST = {"object": "list", "data": [BATCH], "first_id": BATCH_ID, "last_id": BATCH_ID, "has_more": False}
MODEL = {
    "id": _MODEL,
    "object": "model",
    "created": 0,
    "owned_by": "superlink",
    "superlink": {
        "version": "1",
        "max_tokens": 1024,
        "max_images": 4,
        "tools": [{"name": "detection", "version": "1", "routes": ["[DET]"], "max_groups": 100, "ready": True}],
    },
}
MODEL_LIST = {"object": "list", "data": [MODEL]}
ALIVE = {"status": "alive"}
STARTED = {"status": "started"}
READY = {
    "status": "ready",
    "services": [
        {"name": "orchestrator", "ready": True},
        {"name": "mllm", "ready": True, "breaker": "closed", "replicas": 1, "replicas_in_use": 1},
    ],
}
METRICS = "# TYPE superlink_gateway_requests_in_flight gauge\nsuperlink_gateway_requests_in_flight 0.0\n"


def problem(code: str, status: int, detail: str, *, retryable: bool) -> dict[str, Any]:
    """A problem document."""
    return {
        "type": f"urn:superlink:problem:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "code": code,
        "message": detail,
        "service": "gateway",
        "hop": "client>gateway",
        "request_id": "4f0c9a1b2c3d4e5f4f0c9a1b2c3d4e5f",
        "retryable": retryable,
    }
