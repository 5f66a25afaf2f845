"""Tensors on the wire: raw little-endian bytes in row-major order with dtype and shape. No pickle anywhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch

from superlink.errors import invalid_argument
from superlink.v1 import types_pb2

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

if sys.byteorder != "little":
    raise ImportError("Superlink's tensor format is little-endian, and this machine is not.")


def tensor_to_message(tensor: torch.Tensor) -> types_pb2.Tensor:
    """``tensor`` (float32, float16 or bfloat16, any device) in its own dtype."""
    values = tensor.detach().cpu().contiguous()
    return types_pb2.Tensor(
        data=values.reshape(-1).view(torch.uint8).numpy().tobytes(),
        dtype=_NAMES[values.dtype],
        shape=list(values.shape),
    )


def tensor_from_message(message: types_pb2.Tensor, name: str, shape: Sequence[int]) -> torch.Tensor:
    """The float32 tensor in ``message``, which must have ``shape``.

    ``name`` says in errors what the tensor is: "the link embedding of group 2". Raises SuperlinkError
    (INVALID_ARGUMENT) for an unknown dtype, a wrong shape, a wrong number of bytes, and for values that are not finite.
    """
    dtype = DTYPES.get(message.dtype)
    if dtype is None:
        raise invalid_argument(
            "invalid_tensor", f"{name} has dtype {message.dtype!r}; valid are {', '.join(sorted(DTYPES))}."
        )
    if list(message.shape) != list(shape):
        raise invalid_argument("invalid_tensor", f"{name} has shape {list(message.shape)}; {list(shape)} is expected.")
    expected_bytes = math.prod(shape) * dtype.itemsize
    if len(message.data) != expected_bytes:
        raise invalid_argument(
            "invalid_tensor",
            f"{name} carries {len(message.data)} bytes; {message.dtype} of shape {list(shape)} takes {expected_bytes}.",
        )
    # A bytearray, because torch wants memory that it may write to.
    values = torch.frombuffer(bytearray(message.data), dtype=dtype).reshape(tuple(shape)).to(torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise invalid_argument("invalid_tensor", f"{name} holds values that are not finite (NaN or infinity).")
    return values
