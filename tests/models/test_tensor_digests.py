import ml_dtypes
import numpy as np
import pytest

from srpo_jax.models import tensor_digests
from srpo_jax.runtime.errors import UserError


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_every_bit_counts_and_shape_and_type_too(dtype):
    array = np.arange(6).astype(dtype).reshape(2, 3)
    known = tensor_digests.digest(array)
    assert tensor_digests.digest(np.asfortranarray(array)) == known
    assert tensor_digests.digest(array.reshape(3, 2)) != known
    assert tensor_digests.digest(array.view(np.int32 if dtype == np.float32 else np.int16)) != known
    for bit in range(8 * array.nbytes):
        flipped = array.copy()
        flipped.reshape(-1).view(np.uint8)[bit // 8] ^= 1 << bit % 8
        assert tensor_digests.digest(flipped) != known


def test_a_number_alone_has_a_digest():
    assert len(tensor_digests.digest(np.float32(1.0))) == 64


@pytest.mark.parametrize("damage", ['{"sha256": {"a', '{"sha1": {}}', '{"sha256": []}', "[]"])
def test_a_damaged_file_is_named(damage, tmp_path):
    (tmp_path / tensor_digests.FILE).write_text(damage)
    with pytest.raises(UserError, match=r"digests\.json cannot be read .*remove this file"):
        tensor_digests.read(tmp_path)


def test_tensors_without_a_digest_are_not_checked(tmp_path):
    assert tensor_digests.read(tmp_path) == {}
    tensor_digests.write(tmp_path, {"a": tensor_digests.digest(np.ones(2))})
    known = tensor_digests.read(tmp_path)
    tensor_digests.check(known, "a", np.ones(2), tmp_path)
    tensor_digests.check(known, "b", np.zeros(2), tmp_path)
    with pytest.raises(UserError, match="'a' has other bits"):
        tensor_digests.check(known, "a", np.zeros(2), tmp_path)
