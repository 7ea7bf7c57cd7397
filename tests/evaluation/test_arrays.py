"""Arrays in a file: what was written comes back, and a file that was cut anywhere is known to be damaged."""

import numpy as np
import pytest

from jemstone.evaluation.arrays import DAMAGED, read_arrays, write_arrays

ARRAYS = {"a/b": np.arange(5), "flag": np.array([True, False]), "key": np.array("text")}


@pytest.mark.parametrize("compress", [False, True])
def test_arrays_come_back(tmp_path, compress):
    write_arrays(tmp_path / "x.npz", ARRAYS, compress=compress)
    read = read_arrays(tmp_path / "x.npz")
    assert {name: (v.dtype, v.tolist()) for name, v in read.items()} == {
        name: (v.dtype, v.tolist()) for name, v in ARRAYS.items()
    }


def test_damage_anywhere_is_known(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(DAMAGED):
        read_arrays(path)
    write_arrays(path, ARRAYS)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 41):
        path.write_bytes(whole[:length])
        with pytest.raises(DAMAGED):
            read_arrays(path)
