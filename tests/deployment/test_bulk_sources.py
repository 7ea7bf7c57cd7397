"""What bulk scoring reads: blocks by place, in flat memory, with damage where it is."""

import io
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from jemstone.deployment.bulk_sources import Unreadable, open_source
from jemstone.errors import DataError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def inputs(path, spans):
    return [block.inputs for block in open_source(path).blocks(spans)]


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", [(40, 8, 8), (40, 8, 8, 1), (40, 1, 8, 8), (40, 64)])
def test_npz_by_place(tmp_path, write, shape):
    path = tmp_path / "images.npz"
    write(path, labels=np.arange(40), images=PIXELS.reshape(shape), test_images=PIXELS[:2])
    source = open_source(path)
    assert source.rows == 40
    found = list(source.blocks([(0, 3), (3, 4), (37, 40)]))
    assert [block.ids for block in found] == [["0", "1", "2"], ["3"], ["37", "38", "39"]]
    one = (8, 8, 1) if len(shape) == 3 else shape[1:]  # three grey images must not pass for one in colour
    assert [block.inputs.shape for block in found] == [(n, *one) for n in (3, 1, 3)]
    read = np.concatenate([block.inputs.reshape(-1, 64) for block in found])
    assert (read == PIXELS.reshape(40, 64)[[0, 1, 2, 3, 37, 38, 39]]).all()
    assert source.example.shape == (1, *one)
    assert source.example.dtype == np.uint8


def test_npz_of_one_array_may_call_it_as_it_likes(tmp_path):
    np.savez(tmp_path / "a.npz", x=PIXELS)
    assert open_source(tmp_path / "a.npz").rows == 40
    np.savez(tmp_path / "b.npz", x=PIXELS, y=PIXELS)
    with pytest.raises(DataError, match="the arrays x, y"):
        open_source(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", test_images=PIXELS[:5], train_images=PIXELS)
    assert open_source(tmp_path / "c.npz").rows == 5


def test_memory_is_that_of_a_block(tmp_path):
    path = tmp_path / "images.npz"
    np.savez_compressed(path, images=np.zeros((20_000, 32, 32), np.uint8))  # 20 MB
    spans = [(i, i + 100) for i in range(0, 20_000, 100)]
    tracemalloc.start()
    count = sum(len(block.ids) for block in open_source(path).blocks(spans))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 2_000_000


def test_a_compressed_stream_that_breaks_off(tmp_path, monkeypatch):
    path = tmp_path / "images.npz"
    np.savez_compressed(path, images=PIXELS)
    read, calls = zipfile.ZipExtFile.read, [0]

    def break_off(self, n=-1):
        calls[0] += n == 10 * 64  # blocks, not headers
        if calls[0] == 3:
            raise zlib.error("invalid distance")
        return read(self, n)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", break_off)
    first, second, *others = inputs(path, [(i, i + 10) for i in range(0, 40, 10)])
    assert (np.concatenate([first, second])[..., 0] == PIXELS[:20]).all()
    assert calls == [3], "what follows is not even tried"
    for block in others:
        assert len(block) == 10
        assert all(isinstance(part, Unreadable) and "invalid distance" in part.reason for part in block)


def test_a_wrong_checksum_is_told_at_the_end(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, images=np.tile(PIXELS, (100, 1, 1)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    first, *_, last = inputs(path, [(i, i + 100) for i in range(0, 4000, 100)])
    assert (first[..., 0] == np.tile(PIXELS, (3, 1, 1))[:100]).all()
    assert all("CRC" in part.reason and "before it" in part.reason for part in last)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"no archive"),
        lambda path: path.write_bytes(_npz(PIXELS)[:-200]),
        lambda path: np.savez(path, images=np.asfortranarray(PIXELS)),
        lambda path: np.savez(path, images=np.array([{}, {}], dtype=object).reshape(1, 2)),
        lambda path: np.savez(path, images=PIXELS[:0]),
        lambda path: np.savez(path, images=np.float32(3)),
        lambda path: zipfile.ZipFile(path, "w").writestr("images.npy", b"not numpy"),
    ],
)
def test_an_npz_without_inputs_is_refused(tmp_path, make):
    make(tmp_path / "images.npz")
    with pytest.raises(DataError, match=r"images\.npz"):
        open_source(tmp_path / "images.npz")


@pytest.mark.parametrize("shape", [(10**12, 8, 8), (3, 10**9, 10**9), (-5, 8, 8), (3, 0, 8)])
def test_an_npz_that_claims_what_it_does_not_hold_is_refused_before_memory_is_set_aside(tmp_path, shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "|u1"})
    with zipfile.ZipFile(tmp_path / "images.npz", "w") as archive:
        archive.writestr("images.npy", file.getvalue() + bytes(640))
    with pytest.raises(DataError, match=r"images\.npz: images has shape"):
        open_source(tmp_path / "images.npz")


def _npz(images):
    file = io.BytesIO()
    np.savez(file, images=images)
    return file.getvalue()


ENCODED = [png(pixels) for pixels in PIXELS]


@pytest.mark.parametrize("kind", ["binary", "large", "struct"])
def test_parquet_by_place(tmp_path, kind):
    path = tmp_path / "images.parquet"
    values = [*ENCODED[:7], None, *ENCODED[8:]]
    if kind == "struct":
        values = [value and {"bytes": value, "path": "x.png"} for value in values]
        values[9] = {"bytes": None, "path": "elsewhere.png"}
        column = pa.array(values, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    else:
        column = pa.array(values, pa.binary() if kind == "binary" else pa.large_binary())
    table = pa.table({"label": list(range(40)), {"binary": "image", "large": "bytes", "struct": "img"}[kind]: column})
    parquet.write_table(table, path, row_group_size=6)
    source = open_source(path)
    assert (source.rows, source.example) == (40, None)
    (begin, end) = source.blocks([(0, 20), (20, 40)])
    assert begin.ids + end.ids == [str(i) for i in range(40)]
    read = begin.inputs + end.inputs
    missing = {7, 9} if kind == "struct" else {7}
    for i, value in enumerate(read):
        assert isinstance(value, Unreadable) if i in missing else value == ENCODED[i], i
    for spans in ([(13, 15), (15, 17)], [(13, 14), (31, 40)], [(39, 40)]):
        expected = [read[start:stop] for start, stop in spans]
        assert [block.inputs for block in source.blocks(spans)] == expected


def test_shards_are_one_source(tmp_path):
    for number, part in enumerate((ENCODED[:15], ENCODED[15:16], [], ENCODED[16:])):
        column = pa.array(part, pa.binary())
        parquet.write_table(pa.table({"image": column}), tmp_path / f"train-{number}.parquet", row_group_size=4)
    source = open_source(tmp_path)
    assert source.rows == 40
    assert [block.inputs for block in source.blocks([(3, 14), (14, 30), (30, 40)])] == [
        ENCODED[3:14],
        ENCODED[14:30],
        ENCODED[30:],
    ]
    assert [block.inputs for block in source.blocks([(17, 20)])] == [ENCODED[17:20]]


def test_a_damaged_row_group_costs_its_rows(tmp_path):
    path = tmp_path / "images.parquet"
    parquet.write_table(pa.table({"image": ENCODED}), path, row_group_size=10, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    column = parquet.read_metadata(path).row_group(1).column(0)
    content[column.data_page_offset : column.data_page_offset + 60] = bytes(60)
    path.write_bytes(content)
    (found,) = inputs(path, [(0, 40)])
    assert found[:10] + found[20:] == ENCODED[:10] + ENCODED[20:]
    assert all(isinstance(value, Unreadable) for value in found[10:20])


def test_parquet_without_images_is_refused(tmp_path):
    path = tmp_path / "table.parquet"
    parquet.write_table(pa.table({"image": ["text"], "b": [1]}), path)
    with pytest.raises(DataError, match="it has image, b"):
        open_source(path)
    parquet.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
    with pytest.raises(DataError, match="no rows"):
        open_source(path)
    path.write_bytes(b"PAR1 and nothing")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_source(path)


def test_what_is_no_source(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    for path, says in (
        (tmp_path / "gone", "There is no"),
        (tmp_path, "no images"),
        (tmp_path / "notes.txt", "unknown"),
    ):
        with pytest.raises(DataError, match=says):
            open_source(path)


def test_another_source_has_another_fingerprint(tmp_path):
    (tmp_path / "a.png").write_bytes(ENCODED[0])
    first = open_source(tmp_path).fingerprint
    assert open_source(tmp_path).fingerprint == first
    (tmp_path / "b.png").write_bytes(ENCODED[1])
    second = open_source(tmp_path).fingerprint
    (tmp_path / "b.png").write_bytes(ENCODED[1] + b"\n")
    assert len({first, second, open_source(tmp_path).fingerprint}) == 3


def test_names_that_are_no_text(tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    try:
        (tmp_path / name).write_bytes(ENCODED[0])
    except OSError:
        pytest.skip("this file system has none")
    (block,) = open_source(tmp_path).blocks([(0, 1)])
    assert block.ids == ["caf\N{REPLACEMENT CHARACTER}.png"]
    assert block.inputs[0].read_bytes() == ENCODED[0]
