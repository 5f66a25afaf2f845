"""The three kinds of body that every typed endpoint takes: JSON, multipart with image files, or the image itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import ValidationError

from gateway.bodies import media_type_of, parse, read_body, read_form
from gateway.calls import Call
from gateway.deployment import Deployment
from gateway.disconnects import unless_client_leaves
from gateway.image_sources import load_images
from gateway.images import ReceivedImage, receive_address, receive_image
from gateway.problems import invalid_request
from gateway.typed_options import TypedOptions
from superlink.errors import invalid_argument

Options = TypeVar("Options", bound=TypedOptions)

# Options that may be repeated as form fields and query parameters.
_LISTS = ("categories", "keypoints", "regions")


@dataclass(frozen=True)
class TypedRequest(Generic[Options]):
    """What is asked, about which images."""

    images: list[ReceivedImage]
    options: Options


async def read_typed(
    request: Request, deployment: Deployment, call: Call, options: type[Options], body: Any, max_images: int
) -> TypedRequest[Options]:
    """The request, from any of the three kinds of body.

    ``body`` is the JSON one: ``options`` and, as ``addresses()``, where the images are, in order. Raises
    SuperlinkError ``invalid_request`` and ``invalid_multipart``, and what images are refused for.
    """
    limits = deployment.profile.images
    media_type = media_type_of(request)
    if media_type == "multipart/form-data":
        form = await read_form(request, deployment.profile.gateway, max_images, call.timeout_s)
        return TypedRequest([receive_image(file, limits) for file in form.files], _options(options, form.fields))
    if media_type.startswith("image/") or media_type == "application/octet-stream":
        parameters: dict[str, list[str]] = {}
        for name, value in request.query_params.multi_items():
            parameters.setdefault(name, []).append(value)
        image = receive_image(await read_body(request, call.timeout_s), limits)
        return TypedRequest([image], _options(options, parameters))
    document = parse(body, await read_body(request, call.timeout_s))
    addresses = document.addresses()
    if len(addresses) > max_images:
        raise invalid_argument("too_many_images", f"There are {len(addresses)} images; the limit is {max_images}.")
    loaded = await unless_client_leaves(request, load_images(deployment, call, addresses))
    return TypedRequest([receive_address(address, limits, loaded) for address in addresses], document)


def _options(options: type[Options], fields: dict[str, list[str]]) -> Options:
    """Options from form fields or query parameters; lists may repeat, the others not."""
    values: dict[str, Any] = {}
    for name, given in fields.items():
        if name in _LISTS:
            values[name] = given
        elif len(given) > 1:
            raise invalid_argument("invalid_request", f"The field {name!r} is given more than once.")
        else:
            values[name] = given[0]
    try:
        return options.model_validate(values)
    except ValidationError as error:
        raise invalid_request(error) from error
