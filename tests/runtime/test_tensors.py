import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime.tensors import tensor_from_message, tensor_to_message
from superlink.errors import SuperlinkError
from superlink.v1 import types_pb2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), max_size=3), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_round_trip_keeps_every_bit(shape: list[int], dtype: torch.dtype) -> None:
    tensor = torch.randn(shape).to(dtype)
    message = types_pb2.Tensor.FromString(tensor_to_message(tensor).SerializeToString())
    assert torch.equal(tensor_from_message(message, "it", shape), tensor.float())


def test_bytes_are_little_endian_and_row_major() -> None:
    tensor = torch.arange(6, dtype=torch.float32).reshape(3, 2).T
    message = tensor_to_message(tensor)
    assert message.data == np.array([[0, 2, 4], [1, 3, 5]], dtype="<f4").tobytes()
    assert (message.dtype, list(message.shape)) == ("float32", [2, 3])


def test_result_can_be_written_to() -> None:
    tensor_from_message(tensor_to_message(torch.zeros(4)), "it", [4]).add_(1)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (types_pb2.Tensor(data=bytes(16), dtype="float64", shape=[4]), "dtype 'float64'; valid are"),
        (types_pb2.Tensor(data=bytes(16), dtype="", shape=[4]), "dtype ''"),
        (types_pb2.Tensor(data=bytes(20), dtype="float32", shape=[5]), r"shape \[5\]; \[4\] is expected"),
        (types_pb2.Tensor(data=bytes(16), dtype="float32", shape=[2, 2]), r"\[4\] is expected"),
        (types_pb2.Tensor(data=bytes(15), dtype="float32", shape=[4]), "carries 15 bytes; .* takes 16"),
        (types_pb2.Tensor(data=bytes(16), dtype="float16", shape=[4]), "carries 16 bytes; .* takes 8"),
        (types_pb2.Tensor(), "dtype"),
        (tensor_to_message(torch.tensor([0.0, float("nan"), 0.0, 0.0])), "not finite"),
        (tensor_to_message(torch.tensor([0.0, float("inf"), 0.0, 0.0])), "not finite"),
    ],
)
def test_wrong_tensors_are_refused_by_name(message: types_pb2.Tensor, words: str) -> None:
    with pytest.raises(SuperlinkError, match=f"^the link .*{words}") as caught:
        tensor_from_message(message, "the link of group 3", [4])
    assert (caught.value.code, caught.value.http_status) == ("invalid_tensor", 400)
