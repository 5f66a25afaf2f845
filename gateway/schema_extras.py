"""What the API's description says of fields beyond their types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import WithJsonSchema


def only(*values: Any) -> WithJsonSchema:
    """Of an option of OpenAI's that changes nothing here: all but ``values`` and null are refused, by its name."""
    return WithJsonSchema({"enum": [None, *values]})


def exactly_one_of(*names: str) -> Callable[[dict[str, Any]], None]:
    """Of an object: exactly one of these fields is given, and the others are left out or null."""

    def describe(schema: dict[str, Any]) -> None:
        given = {}
        for name in names:
            field = schema["properties"][name]
            alternatives = [each for each in field.pop("anyOf") if each.get("type") != "null"]
            field.pop("default", None)
            given[name] = {**alternatives[0], **field}
        absent = {"type": "null"}
        rest = {name: field for name, field in schema["properties"].items() if name not in names}
        schema["oneOf"] = [
            {
                "type": "object",
                "required": [name],
                "properties": {**rest, **dict.fromkeys(names, absent), name: given[name]},
                "additionalProperties": schema.get("additionalProperties", True),
            }
            for name in names
        ]
        for replaced in ("properties", "additionalProperties", "type"):
            schema.pop(replaced, None)

    return describe
