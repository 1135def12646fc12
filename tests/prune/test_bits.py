"""Packed masks: literal bytes, and the error for another size."""

import pytest
import torch

from lib.prune import bits


@pytest.mark.parametrize(
    ("shape", "flat", "packed"),
    [((3, 3), [1, 0, 0, 0, 0, 0, 0, 1, 1], [0b10000001, 0b10000000]), ((2, 4), [1] * 8, [255]), ((1,), [0], [0])],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_a_mask_takes_a_bit_for_each_weight(shape, flat, packed, dtype):
    mask = torch.tensor(flat, dtype=dtype).view(shape)
    assert bits.pack(mask).tolist() == packed
    assert bits.size(shape) == len(packed)
    found = bits.unpack(torch.tensor(packed, dtype=torch.uint8), shape)
    assert found.dtype == torch.uint8
    assert torch.equal(found, mask.byte())


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"a mask of \[3, 3\] has 1 bytes instead of 2"):
        bits.unpack(torch.zeros(1, dtype=torch.uint8), (3, 3))
