"""Images as agents give them."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

from superlink.data_urls import base64_of, decode_base64
from superlink.errors import invalid_argument
from superlink.images import media_type

# By so many bytes image files are known.
_HEAD = 12
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def inline_image(given: str) -> bytes:
    """The file bytes of an image that came as a data URL or in base64.

    Raises SuperlinkError ``invalid_data_url``, ``remote_image_refused`` for addresses, and ``image_missing``.
    """
    if is_base64_image(given):
        return decode_base64("".join(given.split()))
    if is_address(given):
        return decode_base64(base64_of(given))
    raise invalid_argument(
        "image_missing",
        "An image is a data URL (data:image/png;base64,…) or the base64 of a JPEG, PNG or WebP file. Paths are of no "
        "use here: this server does not see your files.",
    )


def local_image(given: str) -> bytes:
    """The bytes of an image file on this machine, by its path.

    Nothing but images is read, whatever a model asks for. Raises SuperlinkError ``image_missing`` and
    ``unsupported_image``.
    """
    path = Path(os.path.expanduser(given))
    try:
        if not path.is_file():
            raise invalid_argument(
                "image_missing",
                f"There is no file {given!r} on the machine that `superlink mcp` runs on. Give an absolute path, a "
                "data URL or base64.",
            )
        with path.open("rb") as file:
            head = file.read(_HEAD)
            if not _is_image(head):
                raise invalid_argument("unsupported_image", f"{given!r} is not a JPEG, PNG or WebP file.")
            return head + file.read()
    except OSError as error:
        raise invalid_argument("image_missing", f"{given!r} cannot be read: {error.strerror}.") from error


def is_address(given: str) -> bool:
    """Whether a text is an address of some kind, rather than a path; one letter and a colon are a drive."""
    return _ADDRESS.match(given) is not None


def is_base64_image(given: str) -> bool:
    """Whether a text is the base64 of an image file; judged by its beginning, which no path has."""
    try:
        return _is_image(base64.b64decode(given[: _HEAD // 3 * 4], validate=True))
    except ValueError:
        return False


def _is_image(head: bytes) -> bool:
    return media_type(head).startswith("image/")
