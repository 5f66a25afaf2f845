"""``/v1/files``: OpenAI's shape."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway import examples
from superlink.artifact_files import ArtifactRecord

# What a client may upload a file for.
UploadPurpose = Literal["batch", "vision", "user_data"]
Purpose = Literal["batch", "batch_output", "vision", "user_data"]

# Of names that clients give.
MAX_NAME_CHARACTERS = 255


class FileObject(BaseModel):
    """A file, without its content."""

    id: str = Field(examples=[examples.FILE_ID])
    object: Literal["file"] = "file"
    bytes: int = Field(description="Its size.")
    created_at: int = Field(description="Unix time in seconds.")
    expires_at: int = Field(description="Unix time in seconds; it is then deleted.")
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, record: ArtifactRecord) -> FileObject:
        """The REST form of ``record``."""
        return cls.model_validate(
            {
                "id": record.id,
                "bytes": record.size_bytes,
                "created_at": int(record.created_at.timestamp()),
                "expires_at": int(record.expires_at.timestamp()),
                "filename": record.name,
                "purpose": record.purpose,
            }
        )


class FileList(BaseModel):
    """Some of a client's files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None = Field(description="Null where there are none.")
    last_id: str | None = Field(description="`after` of the next page.")
    has_more: bool


class FileDeleted(BaseModel):
    """A file that is no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FileListOptions(BaseModel):
    """Which files to list. These are query parameters."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(
        default=None, description="The last file of the page before.", examples=[examples.FILE_ID]
    )
    limit: int = Field(default=10_000, ge=1, le=10_000, description="Of one page.", examples=[20])
    order: Literal["asc", "desc"] = Field(
        default="desc", description="By the time at which they were made.", examples=["asc"]
    )
    purpose: Purpose | None = Field(default=None, description="Unset: all.", examples=["batch"])


class UploadFields(BaseModel):
    """The text fields of an upload."""

    model_config = ConfigDict(extra="forbid")

    purpose: UploadPurpose
    anchor: Literal["created_at"] | None = Field(
        default=None, alias="expires_after[anchor]", description="What the time counts from."
    )
    seconds: int | None = Field(
        default=None,
        alias="expires_after[seconds]",
        ge=3600,
        le=2_592_000,
        description="When the file is deleted. Unset, or longer: as the deployment says, after 30 days.",
    )
