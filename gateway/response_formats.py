"""``response_format``: free text, JSON, or JSON that fits a schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field


class TextFormat(BaseModel):
    """Free text, the default."""

    type: Literal["text"]


class JsonObjectFormat(BaseModel):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(BaseModel):
    """A JSON schema with its name."""

    name: str = Field(description="Accepted and ignored, like `description` and `strict`: the schema always holds.")
    json_schema: dict[str, Any] = Field(alias="schema", description="See docs/api.md for the keywords.")


class JsonSchemaFormat(BaseModel):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
