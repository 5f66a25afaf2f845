"""``/v1/files``: clients' files, in OpenAI's shape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Request
from pydantic import ValidationError
from starlette.responses import StreamingResponse

from gateway import examples
from gateway.bodies import media_type_of, timeout_of, too_slow
from gateway.calls import owner_of
from gateway.deployment import deployment_of
from gateway.documentation import (
    content_documentation,
    example_response,
    problem_response,
    problem_responses,
    unknown_file_responses,
    upload_documentation,
)
from gateway.files_schema import (
    MAX_NAME_CHARACTERS,
    FileDeleted,
    FileList,
    FileListOptions,
    FileObject,
    UploadFields,
)
from gateway.problems import invalid_request
from gateway.storage_threads import StorageThreads
from gateway.uploads import OVERHEAD_BYTES, UploadForm, receive_upload
from superlink.artifact_files import ArtifactRecord
from superlink.artifacts import ArtifactWriter
from superlink.errors import invalid_argument

router = APIRouter()

FILES = "/v1/files"
FileId = Annotated[str, Path(examples=[examples.FILE_ID])]
# Pieces in which contents go out.
READ_BYTES = 256 * 1024


@router.post(FILES, response_model=FileObject, summary="Upload a file", **upload_documentation())
async def upload(request: Request) -> FileObject:
    """Keep a file, such as an image to ask about more than once."""
    deployment = deployment_of(request)
    settings = deployment.profile.artifacts
    if media_type_of(request) != "multipart/form-data":
        raise invalid_argument("invalid_request", "An upload is multipart/form-data with the fields file and purpose.")
    timeout_s = timeout_of(request, settings.upload_timeout_s)
    # Refused before anything of it is read, where the length says that it must be too long.
    least_size = max(0, int(request.headers.get("content-length", "0")) - OVERHEAD_BYTES)
    writer = await deployment.storage.run(deployment.artifacts.create, owner_of(request), "", least_size)
    try:
        async with asyncio.timeout(timeout_s):
            form = await receive_upload(request, writer, deployment.storage)
        return FileObject.of(await deployment.storage.run(_commit, writer, form))
    except TimeoutError as error:
        raise too_slow() from error
    finally:
        await deployment.storage.run(writer.discard)


@router.get(
    FILES,
    summary="List files",
    responses={
        **problem_responses(400),
        503: problem_response("storage_unavailable"),
        **example_response(examples.FILE_LIST),
    },
)
async def list_files(request: Request, options: Annotated[FileListOptions, Query()]) -> FileList:
    """The files of the API key, the last one first unless `order` says otherwise."""
    deployment = deployment_of(request)
    page = await deployment.storage.run(
        deployment.artifacts.page,
        owner_of(request),
        limit=options.limit,
        after=options.after or "",
        newest_first=options.order == "desc",
        purpose=options.purpose,
    )
    ids = [record.id for record in page.records]
    return FileList(
        data=[FileObject.of(record) for record in page.records],
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=page.has_more,
    )


@router.get(
    f"{FILES}/{{file_id}}",
    summary="One file",
    responses={**unknown_file_responses(), **example_response(examples.FILE)},
)
async def get_file(request: Request, file_id: FileId) -> FileObject:
    """What is known of it."""
    return FileObject.of(await _record(request, file_id))


@router.get(f"{FILES}/{{file_id}}/content", summary="The content of a file", **content_documentation())
async def get_content(request: Request, file_id: FileId) -> StreamingResponse:
    """The bytes that were uploaded."""
    deployment = deployment_of(request)
    record = await _record(request, file_id)
    file = await deployment.storage.run(deployment.artifacts.open, record)
    headers = {
        "content-length": str(record.size_bytes),
        # Whatever it holds: a browser saves it and never shows it, so that no file becomes a page of this gateway.
        "content-disposition": f"attachment; filename*=UTF-8''{quote(record.name, safe='')}",
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(_pieces(file, deployment.storage), media_type="application/octet-stream", headers=headers)


@router.delete(
    f"{FILES}/{{file_id}}",
    summary="Delete a file",
    responses={**unknown_file_responses(), **example_response(examples.FILE_DELETED)},
)
async def delete_file(request: Request, file_id: FileId) -> FileDeleted:
    """Forget it; requests that read it already are answered."""
    deployment = deployment_of(request)
    await deployment.storage.run(deployment.artifacts.delete, owner_of(request), file_id)
    return FileDeleted(id=file_id)


async def _record(request: Request, file_id: str) -> ArtifactRecord:
    deployment = deployment_of(request)
    return await deployment.storage.run(deployment.artifacts.get, owner_of(request), file_id)


def _commit(writer: ArtifactWriter, form: UploadForm) -> ArtifactRecord:
    try:
        fields = UploadFields.model_validate(form.fields)
    except ValidationError as error:
        raise invalid_request(error) from error
    if (fields.anchor is None) != (fields.seconds is None):
        raise invalid_argument("conflicting_fields", "expires_after needs both its fields, anchor and seconds.")
    # Some clients send the whole path.
    name = form.file_name.replace("\\", "/").rpartition("/")[2]
    if len(name) > MAX_NAME_CHARACTERS:
        raise invalid_argument(
            "invalid_request", f"The file's name has {len(name):,} characters; the limit is {MAX_NAME_CHARACTERS}."
        )
    return writer.commit(name or "file", fields.purpose, fields.seconds)


async def _pieces(file: BinaryIO, threads: StorageThreads) -> AsyncGenerator[bytes, None]:
    try:
        while piece := await threads.run(file.read, READ_BYTES):
            yield piece
    finally:
        await threads.run(file.close)
