"""Images and bodies of requests."""

import base64
import io
from typing import Any

from PIL import Image
from scripted_workers import IMAGE_HEIGHT, IMAGE_WIDTH


def data_url(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def chat_body(words: str, *images: bytes, **options: Any) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(each)}} for each in images]
    content.append({"type": "text", "text": words})
    return {"messages": [{"role": "user", "content": content}], **options}


def encode_picture(
    format_name: str = "PNG", size: tuple[int, int] = (IMAGE_WIDTH, IMAGE_HEIGHT), **options: object
) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 120, 40)).save(buffer, format=format_name, **options)
    return buffer.getvalue()
