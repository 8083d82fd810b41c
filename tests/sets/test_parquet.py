import hashlib
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_distilled import PARQUET, RGB, bits, make_set

from ssdd_hub import record_schema
from ssdd_hub.errors import InputError
from ssdd_hub.record import read_metadata
from ssdd_hub.sets import parquet
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.folder import Stated, describe_tensor, measure_range, split_rows

# Bytes of a row of `make_full_set`: id, preview, pixels, target, label, two views, two view targets.
ROW = 8 + 126 + 4 * 126 + 4 * 4 + 8 + 8 * 2 * 3 + 4 * 2 * 4
COLUMNS = ["id", "image", "pixels", "target", "label", "view", "view_target"]


def verify(folder, stated):
    for _ in parquet.iter_tensors(folder, stated):
        pass


def make_full_set(size=17, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = torch.randint(0, 2, (size, 2, 3), generator=generator)
    parts = {"views": views, "view_targets": torch.randn(size, 2, 4, generator=generator)}
    return make_set(size, seed=seed, labels=torch.arange(size) % 3 - 1, label_names=["a", "b"], **parts)


def limit(monkeypatch):
    """Limits files to 5 rows, and row groups to 2."""
    monkeypatch.setattr(parquet, "SHARD_BYTES", 6 * ROW - 1)
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 3 * ROW - 1)


@pytest.fixture
def small(monkeypatch):
    limit(monkeypatch)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        limit(monkeypatch)
        return make_full_set().save(tmp_path_factory.mktemp("original") / "set")


@pytest.fixture
def folder(original, tmp_path, small):
    """A set of 17 rows in four files."""
    return Path(shutil.copytree(original, tmp_path / "set"))


def stated_of(folder):
    return Stated.of(read_metadata(folder))


def tensors_of(distilled):
    return {name: getattr(distilled, name) for name in record_schema.COLUMNS}


def files(folder):
    return sorted(path.name for path in (folder / "data").iterdir())


def test_a_set_in_several_files_and_row_groups_comes_back(tmp_path, small):
    saved = make_full_set()
    folder = saved.save(tmp_path / "set")
    assert files(folder) == [f"train-{number:05d}-of-00004.parquet" for number in range(4)]
    groups = []
    for name in files(folder):
        footer = pq.read_metadata(folder / "data" / name)
        groups.append([footer.row_group(index).num_rows for index in range(footer.num_row_groups)])
    assert groups == [[2, 2, 1]] * 3 + [[2]]
    loaded = DistilledSet.load(folder)
    for name, tensor in tensors_of(saved).items():
        assert torch.equal(getattr(loaded, name).view(torch.uint8), tensor.view(torch.uint8))
    verify(folder, stated_of(folder))


def test_a_row_larger_than_the_limits_has_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "SHARD_BYTES", 1)
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 1)
    saved = make_set(size=3)
    assert len(files(saved.save(tmp_path / "set"))) == 3
    assert torch.equal(bits(DistilledSet.load(tmp_path / "set").images), bits(saved.images))


def test_datasets_sees_the_same_in_one_file_and_in_several(tmp_path, monkeypatch):
    saved = make_full_set()
    folders = [saved.save(tmp_path / "one")]
    limit(monkeypatch)
    folders.append(saved.save(tmp_path / "several"))
    assert [len(files(folder)) for folder in folders] == [1, 4]
    cache = str(tmp_path / "cache")
    whole, pieces = (datasets.load_dataset(str(folder), split="train", cache_dir=cache) for folder in folders)
    assert whole.column_names == COLUMNS and whole.features == pieces.features
    assert whole.features["view"] == datasets.List(datasets.List(datasets.Value("int64"), length=3), length=2)
    tables = [dataset.data.table.combine_chunks() for dataset in (whole, pieces)]
    assert tables[0].equals(tables[1]) and len(tables[0]) == 17
    streamed = datasets.load_dataset(str(folders[1]), split="train", streaming=True)
    assert streamed.features == whole.features
    rows = list(streamed)
    assert [row["id"] for row in rows] == list(range(17))
    assert np.array_equal(np.array([row["pixels"] for row in rows], "f4"), saved.images.numpy())
    assert np.array_equal(np.array([row["view_target"] for row in rows], "f4"), saved.view_targets.numpy())
    for name in files(folders[1]):
        schema = pq.read_schema(folders[1] / "data" / name)
        assert datasets.Features.from_arrow_schema(schema) == whole.features
    assert (folders[0] / "preview.png").read_bytes() == (folders[1] / "preview.png").read_bytes()
    records = [read_metadata(folder) for folder in folders]
    for folder, record in zip(folders, records, strict=True):
        assert record["num_bytes"].pop("file") == sum(path.stat().st_size for path in (folder / "data").iterdir())
    assert records[0] == records[1]


def test_pieces_are_small_in_order_and_may_be_written_to(tmp_path, small):
    saved = make_full_set()
    folder = saved.save(tmp_path / "set")
    parts = list(parquet.iter_tensors(folder, stated_of(folder)))
    assert all(sum(values.nbytes for values in part.values()) < 3 * ROW for part in parts) and len(parts) > 4
    for name, tensor in tensors_of(saved).items():
        whole = np.concatenate([part[name] for part in parts])
        assert whole.dtype == tensor.numpy().dtype and whole.tobytes() == tensor.numpy().tobytes()
    parts[0]["images"][:] = 0


@pytest.mark.parametrize(
    "make", [lambda t: t, lambda t: t.permute(2, 0, 1), lambda t: t[::2, :, 1:], lambda t: t[0, 0, 0]]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_digests_do_not_depend_on_pieces_or_strides(monkeypatch, make, dtype):
    tensor = make((torch.randn(7, 4, 5, generator=torch.Generator().manual_seed(0)) * 9).to(dtype))
    raw = np.array(tensor.tolist(), "<f4" if dtype == torch.float32 else "<i8").tobytes()
    monkeypatch.setattr("ssdd_hub.sets.folder._CHUNK_BYTES", 50)
    stated = describe_tensor(tensor)
    name = str(dtype).removeprefix("torch.")
    assert stated == {"shape": list(tensor.shape), "dtype": name, "sha256": hashlib.sha256(raw).hexdigest()}


def test_ranges_do_not_depend_on_pieces(monkeypatch):
    images = make_set(size=7).images.clamp(-3, 3)
    pixels = RGB.denormalise(images)
    outside = ((pixels < -1e-6) | (pixels > 1 + 1e-6)).double().mean().item()
    assert 0 < outside < 1
    for size in (50, 1100, 2**24):
        monkeypatch.setattr("ssdd_hub.sets.folder._CHUNK_BYTES", size)
        found = measure_range(RGB.denormalise(part) for part in split_rows(images))
        assert found == {"pixel_range": [pixels.min().item(), pixels.max().item()], "clip_fraction": outside}
    pixels[3, 0, 0, 0] = torch.nan
    assert np.isnan(measure_range(pixels)["pixel_range"]).all()


def as_large_lists(table):
    inner = pa.large_list(pa.large_list(pa.large_list(pa.float32())))
    pixels = pa.array(table["pixels"].to_pylist(), inner)
    return pa.table({"pixels": pixels, "target": pa.array(table["target"].to_pylist(), pa.large_list(pa.float32()))})


def as_plain_lists(table):
    lists = pa.list_(pa.list_(pa.list_(pa.float32(), 7), 6), 3)
    target = pa.array(table["target"].to_pylist(), pa.list_(pa.float32()))
    return pa.table({"target": target, "pixels": pa.array(table["pixels"].to_pylist(), lists)})


@pytest.mark.parametrize("convert", [lambda table: table, as_large_lists, as_plain_lists])
@pytest.mark.parametrize(
    "how", [{}, {"row_group_size": 2}, {"compression": "snappy", "data_page_size": 64, "data_page_version": "2.0"}]
)
def test_files_of_other_writers_are_read(tmp_path, monkeypatch, convert, how):
    saved = make_set(size=7)
    folder = saved.save(tmp_path / "set")
    pq.write_table(convert(pq.read_table(folder / PARQUET)), folder / PARQUET, **how)
    for size in (1, 1100, 2**24):
        monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", size)
        assert torch.equal(bits(DistilledSet.load(folder).images), bits(saved.images))


def test_files_that_datasets_wrote_again_are_read(tmp_path):
    saved = make_full_set()
    folder = saved.save(tmp_path / "set")
    dataset = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    (folder / PARQUET).unlink()
    for index in range(3):
        path = folder / f"data/train-{index:05d}-of-00003.parquet"
        dataset.shard(3, index, contiguous=True).to_parquet(path, batch_size=4)
    loaded = DistilledSet.load(folder)
    assert torch.equal(bits(loaded.images), bits(saved.images)) and torch.equal(loaded.views, saved.views)


# Footers; tests/sets/test_damaged_footers.py damages them at random


def test_a_footer_that_is_too_large_is_refused(folder, monkeypatch):
    monkeypatch.setattr(parquet, "_LARGEST_FOOTER", 1000)
    refused(folder, stated_of(folder), "its footer must be of at most 1000 bytes, got")


@pytest.mark.parametrize(
    "footer",
    [
        b"\0",
        b"\x0c" * 5000,  # structures in structures, deeper than Python goes
        b"\x49\xfc" + b"\xff" * 8 + b"\x7f" + b"\0" * 5000,  # a list of 2**62 row groups
        b"\x18" + b"\xff" * 9 + b"\x01",  # 2**64 bytes
        b"\x45\x02\0",  # row groups that are a number
    ],
)
def test_a_footer_of_something_else_is_refused(folder, footer):
    first(folder).write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")
    refused(folder, stated_of(folder), "are damaged|lack the column|stated shape")


def forbid_decoding(monkeypatch, first_piece=False):
    def fail(*_, **__):
        raise AssertionError("something was allocated or decoded before it was compared with what is stated")

    monkeypatch.setattr(parquet, "_allocate", fail)
    if not first_piece:
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)


def refused(folder, stated, message):
    for read in (verify, parquet.read_tensors):
        with pytest.raises(InputError, match=message):
            read(folder, stated)


def first(folder):
    return folder / "data" / files(folder)[0]


@pytest.mark.parametrize("rows", [10**12, 2**63, 16, 18, 1])
def test_a_number_of_rows_that_is_only_stated_is_refused_unread(folder, monkeypatch, rows):
    forbid_decoding(monkeypatch)
    for name in record_schema.COLUMNS:
        stated = stated_of(folder)
        stated[name] = replace(stated[name], shape=(rows, *stated[name].shape[1:]))
        refused(folder, stated, f"column .* does not hold {name} of the stated shape")


@pytest.mark.parametrize("sizes", [(3, 6, 8), (10**9, 10**9), (125,)])
def test_a_size_that_is_only_stated_is_refused_and_takes_no_memory(folder, monkeypatch, sizes):
    # Where the schema states a size, it is read there; else in the first piece.
    forbid_decoding(monkeypatch, first_piece=len(sizes) == 3)
    stated = stated_of(folder)
    refused(folder, stated | {"images": Stated((17, *sizes), "0" * 64)}, "does not hold images of the stated shape")


@pytest.mark.parametrize("sizes", [(6, 7, 3), (126,), (3, 42), (3, 6, 7, 1), (2, 9, 7)])
def test_sizes_of_the_same_product_are_refused(folder, sizes):
    images = Stated((17, *sizes), stated_of(folder)["images"].sha256)
    refused(folder, stated_of(folder) | {"images": images}, "column 'pixels' does not hold images of the stated shape")


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 1, 2, 3, 4, 4]])
def test_a_file_of_fewer_or_more_rows_is_refused_unread(folder, monkeypatch, rows):
    pq.write_table(pq.read_table(first(folder)).take(rows), first(folder))
    forbid_decoding(monkeypatch)
    refused(folder, stated_of(folder), "column 'pixels' does not hold images of the stated shape")


def rename(folder, old, new):
    (folder / f"data/train-{old:05d}-of-00004.parquet").rename(folder / "data" / new)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: first(folder).unlink(),
        lambda folder: (folder / "data" / files(folder)[-1]).unlink(),
        lambda folder: shutil.copy(first(folder), folder / "data/train-00004-of-00005.parquet"),
        lambda folder: shutil.copy(first(folder), folder / "data/train-00000-of-00003.parquet"),
        lambda folder: shutil.copy(first(folder), folder / "data/train-00004-of-00004.parquet"),
        lambda folder: rename(folder, 3, "train-00003-of-00005.parquet"),
        lambda folder: rename(folder, 3, "train-3-of-4.parquet"),
        lambda folder: rename(folder, 3, "train-0000٣-of-00004.parquet"),
    ],
)
def test_a_file_missing_or_too_many_is_refused_unread(folder, monkeypatch, change):
    change(folder)
    forbid_decoding(monkeypatch)
    refused(folder, stated_of(folder), r"must hold each of the files .* once; of the \d in data, .* missing or not of")


def test_a_file_of_another_set_or_files_in_another_order_are_refused(folder, tmp_path):
    other = make_full_set(seed=1).save(tmp_path / "other")
    whole = first(folder).read_bytes()
    shutil.copy(first(other), first(folder))
    refused(folder, stated_of(folder), "the images are not those that were saved, their sha256 differs")
    rename(folder, 1, "train-00000-of-00004.parquet")
    (folder / "data/train-00001-of-00004.parquet").write_bytes(whole)
    refused(folder, stated_of(folder), "sha256 differs")


@pytest.mark.parametrize("content", [None, b"", b"PAR1", np.random.default_rng(0).bytes(5000)])
def test_a_file_of_other_bytes_or_a_folder_in_its_place_is_refused(folder, content):
    first(folder).unlink() if content is None else first(folder).write_bytes(content)
    if content is None:
        (folder / "data/train-00000-of-00004.parquet").mkdir()
    refused(folder, stated_of(folder), r"parquet files of .* are damaged \(train-00000-of-00004\.parquet: ")


def replace_column(folder, column, values, name=None, **how):
    table = pq.read_table(first(folder))
    table = table.set_column(table.column_names.index(column), name or column, values)
    pq.write_table(table, first(folder), **how)


MISFIT = "does not hold targets of the stated shape"
NOT_FLOATS = "does not hold plain numbers of type float32"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([[0.0] * 4] * 5, pa.list_(pa.float64())), NOT_FLOATS),
        (pa.array([["a"] * 4] * 5), NOT_FLOATS),
        (pa.array([[{"a": 0.0, "b": 0.0}] * 4] * 5), NOT_FLOATS),
        (pa.array([0.0] * 5, pa.float32()), MISFIT),
        (pa.array([[0, 0, 0, None]] + [[0] * 4] * 4, pa.list_(pa.float32())), MISFIT),
        (pa.array([None] + [[0] * 4] * 4, pa.list_(pa.float32())), MISFIT),
        (pa.array([None, [0] * 7] + [[0] * 4] * 3, pa.list_(pa.float32())), MISFIT),
        (pa.array([[], [0] * 7] + [[0] * 4] * 3 + [], pa.list_(pa.float32())), MISFIT),
        (pa.array([[0] * 3, [0] * 5] + [[0] * 4] * 3, pa.list_(pa.float32())), MISFIT),
        (pa.array([[[0] * 2] * 2] * 5, pa.list_(pa.list_(pa.float32()))), MISFIT),
    ],
)
@pytest.mark.parametrize("statistics", [True, False])
def test_a_column_of_something_else_is_refused(folder, values, message, statistics):
    replace_column(folder, "target", values, write_statistics=statistics)
    refused(folder, stated_of(folder), f"column 'target' .*{message}")


def test_a_column_of_times_or_that_one_file_lacks_is_named(folder):
    replace_column(folder, "label", pa.array([0] * 5, pa.timestamp("us")))
    refused(folder, stated_of(folder), "column 'label' .*does not hold plain numbers of type int64")
    replace_column(folder, "target", pq.read_table(first(folder))["target"], name="other")
    refused(folder, stated_of(folder), "lack the column 'target'")


def varint(number):
    """A whole number as parquet footers have it (Thrift's compact protocol): zigzag, 7 bits a byte."""
    number, out = number << 1, []
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def forge_rows(path, old, new):
    """Makes the footer of a file claim `new` rows and values."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<I", raw[-8:-4])
    footer = raw[-8 - length : -8].replace(varint(old), varint(new))
    path.write_bytes(raw[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1")


@pytest.mark.parametrize("claim", [10**12, 70_002, 2**62])
@pytest.mark.parametrize("agreed", [False, True])
def test_rows_that_only_a_footer_claims_are_refused(tmp_path, claim, agreed):
    rows, path = 70_001, tmp_path / PARQUET
    path.parent.mkdir()
    numbers = np.arange(rows, dtype="<f4")
    column = pa.FixedSizeListArray.from_arrays(pa.array(numbers), 1)
    pq.write_table(pa.table({"pixels": column, "target": column}), path, use_dictionary=False, write_statistics=False)
    sha256 = hashlib.sha256(numbers.tobytes()).hexdigest()
    true = dict.fromkeys(("images", "targets"), Stated((rows, 1), sha256))
    verify(tmp_path, true)
    forge_rows(path, rows, claim)
    footer = pq.read_metadata(path)
    assert footer.row_group(0).num_rows == footer.row_group(0).column(1).num_values == claim
    stated = dict.fromkeys(true, Stated((claim, 1), sha256)) if agreed else true
    with pytest.raises(InputError, match="stated shape|are damaged|sha256 differs|GiB, .* of them an image"):
        verify(tmp_path, stated)
    huge = claim > 10**11 and agreed
    with pytest.raises(InputError, match="stated shape" if huge else "stated shape|damaged|differs"):
        parquet.read_tensors(tmp_path, stated)


@pytest.mark.parametrize("shape", [5, None, "17", [], [0, 3], [1.0, 2], [True, 2], ["1"], [[1]], [1] * 6, {"1": 2}])
def test_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(InputError, match="a shape must be 1 to 5 whole numbers above 0; got"):
        Stated(shape, "0" * 64)


@pytest.mark.parametrize("sha256", ["", "0" * 65, "g" * 64, "A" * 64, "0" * 64 + "\n", 0, None, ["0" * 64]])
def test_a_digest_that_is_none_is_refused(sha256):
    with pytest.raises(InputError, match="a sha256 must be 64 hexadecimal digits; got"):
        Stated((1,), sha256)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (None, "must be stated by name"),
        ({"images": 3, "targets": 4}, "must be stated by name"),
        ({"images": {}}, "there are no targets"),
        ({"images": {}, "targets": {}, "weights": {}}, "only images, .* can be stated; got weights"),
        ({"images": {}, "targets": {}}, "a shape must be"),
    ],
)
def test_tensors_that_cannot_be_are_refused(tensors, message):
    with pytest.raises(InputError, match=message):
        Stated.of({"tensors": tensors})


# Memory

MEASURE = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from ssdd_hub.sets.folder import Stated
from ssdd_hub.sets.parquet import iter_tensors
from ssdd_hub.record import read_metadata
folder = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in iter_tensors(folder, Stated.of(read_metadata(folder))):
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count the memory of a process in other units")
def test_half_a_gigabyte_in_one_row_group_is_verified_in_little_memory(tmp_path):
    """The layout that older code wrote; tests/hub/test_hub_scale.py measures ours."""
    folder = DistilledSet(torch.randn(10_000, 3, 64, 64), torch.randn(10_000, 512), RGB).save(tmp_path / "set")
    table = pa.concat_tables(pq.read_table(folder / "data" / name) for name in files(folder))
    shutil.rmtree(folder / "data")
    (folder / "data").mkdir()
    pq.write_table(table, folder / PARQUET, compression="zstd", use_dictionary=False)
    assert pq.read_metadata(folder / PARQUET).num_row_groups == 1
    done = subprocess.run([sys.executable, "-c", MEASURE, folder], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300e6
