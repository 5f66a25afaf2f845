"""Images in texts: data URLs."""

from __future__ import annotations

import base64
import binascii
import re

from superlink.errors import invalid_argument

_DATA_URL = re.compile(r"data:(?P<media_type>[\w.+/-]*)(?:;[\w.+=-]+)*;base64,", re.IGNORECASE)


def base64_of(url: str) -> str:
    """The base64 text of ``data:image/png;base64,…``.

    Raises SuperlinkError ``remote_image_refused`` for any other address, and ``invalid_data_url``.
    """
    header = _DATA_URL.match(url)
    if header is not None:
        return url[header.end() :]
    if url[:5].lower() == "data:":
        raise invalid_argument("invalid_data_url", "The data URL must look like data:image/png;base64,….")
    raise invalid_argument(
        "remote_image_refused",
        "Images are not fetched from addresses. Send the image itself as a data URL: data:image/png;base64,….",
    )


def decode_base64(text: str) -> bytes:
    """The bytes of a data URL's base64 text. Raises SuperlinkError ``invalid_data_url``."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("invalid_data_url", f"The data URL is not valid base64: {error}.") from error
