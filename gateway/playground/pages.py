"""``GET /playground``: the page and the files that belong to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

PLAYGROUND = "/playground"
PAGE = Path(__file__).parent / "page"
# Browsers load scripts and styles only under these names; what has no name here is not served.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # Browsers keep the files and ask whether they still hold, so that an update never mixes old modules with new ones.
    "cache-control": "no-cache",
    # Nothing of other hosts, nothing inline, and no text that becomes markup. Images are samples, uploads and results.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class PageFile:
    """One file as browsers get it."""

    content: bytes
    media_type: str
    # Of its content, so that all gateways of a deployment say the same.
    etag: str


def playground_router() -> APIRouter:
    """The routes of the page; its files are read now, once."""
    files = _read_files()
    index = files.pop("index.html")
    router = APIRouter(include_in_schema=False)

    @router.api_route(PLAYGROUND, methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return _respond(request, index)

    @router.api_route(f"{PLAYGROUND}/{{name:path}}", methods=["GET", "HEAD"])
    async def file(request: Request, name: str) -> Response:
        if not name:
            # Addresses in the page are relative, so that it works behind a proxy that serves the gateway under a path.
            return RedirectResponse("../playground")
        if name not in files:
            raise HTTPException(404)
        return _respond(request, files[name])

    return router


def _read_files() -> dict[str, PageFile]:
    files = {}
    for path in sorted(PAGE.rglob("*")):
        if path.is_file() and path.suffix in MEDIA_TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[path.relative_to(PAGE).as_posix()] = PageFile(content, MEDIA_TYPES[path.suffix], etag)
    return files


def _respond(request: Request, file: PageFile) -> Response:
    headers = {**HEADERS, "etag": file.etag}
    known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
    if known & {file.etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
