"""The link embeddings of a request, checked against what the decoder declares of itself."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from torch import Tensor

from services.runtime.decoder import DecoderSpec
from services.runtime.tensors import tensor_from_message
from superlink.errors import SuperlinkError, invalid_argument
from superlink.v1 import decoder_pb2


def read_links(request: decoder_pb2.DecodeRequest, spec: DecoderSpec, shape: Sequence[int]) -> list[Tensor]:
    """One float32 link embedding of ``shape`` a group.

    Raises SuperlinkError: ``unsupported_input_mode``, ``too_many_groups``, ``adapter_version_mismatch``,
    ``unknown_route`` or ``invalid_tensor``.
    """
    if request.input_mode == decoder_pb2.INPUT_MODE_TEXT:
        raise invalid_argument("unsupported_input_mode", f"The {spec.name} decoder takes link embeddings, not phrases.")
    if len(request.groups) > spec.max_groups:
        raise invalid_argument(
            "too_many_groups",
            f"The request has {len(request.groups)} groups; at most {spec.max_groups} are allowed.",
        )
    if request.adapter_version != spec.adapter_version:
        raise SuperlinkError(
            "adapter_version_mismatch",
            f"The link embeddings were made for adapter version {request.adapter_version!r}; the {spec.name} "
            f"decoder has {spec.adapter_version!r}. Deploy an MLLM and a decoder of the same training run.",
            status=grpc.StatusCode.FAILED_PRECONDITION,
        )
    unknown = sorted({group.route for group in request.groups} - set(spec.routes))
    if unknown:
        raise invalid_argument(
            "unknown_route",
            f"The {spec.name} decoder does not answer {', '.join(map(repr, unknown))}. "
            f"It answers {', '.join(spec.routes)}.",
        )
    return [
        tensor_from_message(group.embedding, f"The link embedding of group {index}", shape)
        for index, group in enumerate(request.groups)
    ]
