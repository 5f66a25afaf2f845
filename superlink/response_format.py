"""What the text of an answer is to be: free, JSON, or JSON that fits a schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

# A name of OpenAI's API, a JSON schema, or a pydantic model that the text is to be read as.
ResponseFormat = Literal["text", "json_object"] | Mapping[str, Any] | type[BaseModel]


def response_format_of(wanted: ResponseFormat) -> dict[str, Any]:
    """``wanted`` as the field ``response_format`` of a request.

    Objects of a pydantic model have its fields alone, unless the model says otherwise: a schema that leaves room for
    others invites a model to fill it. Raises TypeError for what is none of these.
    """
    if isinstance(wanted, str):
        return {"type": wanted}
    if isinstance(wanted, Mapping):
        return _named("answer", dict(wanted))
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        return _named(wanted.__name__, wanted.model_json_schema(schema_generator=_Closed))
    raise TypeError(f"response_format is 'json_object', a JSON schema or a pydantic model, unlike {wanted!r}.")


def _named(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


class _Closed(GenerateJsonSchema):
    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        if made.get("type") == "object":
            made.setdefault("additionalProperties", False)
        return made
