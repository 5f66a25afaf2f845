"""The options of a chat request: what this API does not do is refused, the rest is translated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection

from gateway.chat_schema import ChatRequest
from gateway.response_formats import JsonObjectFormat, JsonSchemaFormat
from superlink.errors import invalid_argument
from superlink.json_schemas import check_schema
from superlink.v1 import mllm_pb2

_ANY_OBJECT = '{"type": "object"}'


def refuse_unsupported(chat: ChatRequest) -> None:
    """Raise SuperlinkError where the request asks for what this API does not do.

    ``unsupported_parameter``, or ``conflicting_fields`` where two do not go together.
    """
    refused = {
        "n": chat.n not in (None, 1),
        "frequency_penalty": bool(chat.frequency_penalty),
        "presence_penalty": bool(chat.presence_penalty),
        "logit_bias": bool(chat.logit_bias),
        "store": bool(chat.store),
        "modalities": chat.modalities not in (None, ["text"]),
        "audio": chat.audio is not None,
        "web_search_options": chat.web_search_options is not None,
        "moderation": chat.moderation is not None,
        "functions": bool(chat.functions),
        "function_call": chat.function_call not in (None, "none", "auto"),
    }
    names = [name for name, is_refused in refused.items() if is_refused]
    if names:
        raise invalid_argument(
            "unsupported_parameter",
            f"This API does not support: {', '.join(names)}. Leave it out; n may be 1, and tools replace functions.",
        )
    if chat.tool_choice not in (None, "none", "auto"):
        raise invalid_argument(
            "unsupported_parameter",
            "tool_choice may be auto or none: which tools an answer needs is for the model to say. /v1/detect, "
            "/v1/segment and /v1/pose call one in any case.",
        )
    if chat.tools and chat.parallel_tool_calls is False:
        raise invalid_argument(
            "conflicting_fields",
            "An answer may call several tools at once, so parallel_tool_calls may not be false. Leave it out.",
        )
    if chat.stop and schema_of(chat):
        raise invalid_argument(
            "conflicting_fields",
            "stop could cut the JSON of response_format off in the middle. Leave one of them out.",
        )


def sampling_of(chat: ChatRequest) -> mllm_pb2.Sampling:
    """How the answer is written. Raises SuperlinkError ``conflicting_fields``."""
    stop = [chat.stop] if isinstance(chat.stop, str) else chat.stop or []
    if chat.top_logprobs is not None and not chat.logprobs:
        raise invalid_argument("conflicting_fields", "top_logprobs needs logprobs to be true.")
    return mllm_pb2.Sampling(
        temperature=chat.temperature or 0.0,
        top_p=chat.top_p or 0.0,
        seed=None if chat.seed is None else chat.seed % 2**64,
        max_new_tokens=min(chat.max_completion_tokens or chat.max_tokens or 0, 2**31),
        stop=stop,
        top_log_probabilities=(chat.top_logprobs or 0) if chat.logprobs else None,
    )


def schema_of(chat: ChatRequest) -> str:
    """The JSON schema that the text is to fit; empty where it is free."""
    if isinstance(chat.response_format, JsonSchemaFormat):
        return json.dumps(chat.response_format.json_schema.json_schema, ensure_ascii=False)
    return _ANY_OBJECT if isinstance(chat.response_format, JsonObjectFormat) else ""


async def checked_schema_of(chat: ChatRequest) -> str:
    """As ``schema_of``. Raises what ``superlink.json_schemas.check_schema`` raises."""
    schema = schema_of(chat)
    if schema:
        # Not in this thread: a large one takes a while.
        await asyncio.to_thread(check_schema, schema)
    return schema


def tools_of(chat: ChatRequest, deployed: Collection[str]) -> mllm_pb2.ToolSelection | None:
    """The tools that the answer may call; None: any of those that are ``deployed``.

    Raises SuperlinkError ``unknown_function`` for the name of another one.
    """
    offered = [tool.function.name for tool in chat.tools or ()]
    unknown = [name for name in offered if name not in deployed]
    if unknown:
        raise invalid_argument(
            "unknown_function",
            f"There is no tool {unknown[0]!r} here. The tools are {', '.join(deployed)}; the model cannot call others.",
        )
    if chat.tool_choice == "none":
        return mllm_pb2.ToolSelection()
    return mllm_pb2.ToolSelection(decoders=offered) if offered else None


def leaves_calls_to_client(chat: ChatRequest) -> bool:
    """Whether the answer ends where it calls tools, so that the client goes on from their results."""
    return bool(chat.tools) and chat.tool_choice != "none"
