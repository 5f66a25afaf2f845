from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as run_length

from superlink.run_length import decode_mask, encode_mask


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=70)))
def test_masks_decode_as_pycocotools_encoded_them(mask: np.ndarray) -> None:
    code = run_length.encode(np.asfortranarray(mask, dtype=np.uint8))

    image = decode_mask(code["size"], code["counts"].decode())

    assert image.size == (mask.shape[1], mask.shape[0])
    assert np.array_equal(np.asarray(image) == 255, mask)


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=70)))
def test_masks_are_encoded_as_pycocotools_encodes_them(mask: np.ndarray) -> None:
    code = run_length.encode(np.asfortranarray(mask, dtype=np.uint8))

    assert encode_mask(Image.fromarray(mask.astype(np.uint8) * 255)) == code["counts"].decode()


@given(st.text("0123456789ABCabcopqz", max_size=12), st.integers(1, 40), st.integers(1, 40))
def test_a_broken_mask_is_an_error_or_a_mask_of_its_size(counts: str, height: int, width: int) -> None:
    try:
        image = decode_mask((height, width), counts)
    except ValueError:
        return
    assert image.size == (width, height)


def test_a_mask_that_does_not_fill_its_size_is_refused() -> None:
    with pytest.raises(ValueError, match="cover 4 pixels; 3 x 3 are 9"):
        decode_mask((3, 3), "4")
