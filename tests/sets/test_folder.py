import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from test_distilled import PARQUET, bits, contents, make_set

from ssdd_hub.errors import InputError
from ssdd_hub.sets.distilled import DistilledSet


def edit_metadata(folder: Path, **changes: Any) -> None:
    path = folder / "ssdd_hub.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Reading


def test_several_shards_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    saved = make_set(size=7)
    folder = saved.save(tmp_path / "set")
    table = pq.read_table(folder / PARQUET)
    (folder / PARQUET).unlink()
    for number, rows in ((2, table.slice(5)), (0, table.slice(0, 2)), (1, table.slice(2, 3))):
        pq.write_table(rows, folder / f"data/train-{number:05d}-of-00003.parquet")
    assert torch.equal(bits(DistilledSet.load(folder).images), bits(saved.images))


def test_a_folder_named_like_a_partition_is_read_as_a_folder(tmp_path: Path) -> None:
    saved = make_set()
    assert torch.equal(DistilledSet.load(saved.save(tmp_path / "target=3" / "set")).targets, saved.targets)


# Writing whole or not at all


def test_saving_again_replaces_the_set_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    make_set(seed=1).save(tmp_path / "set")
    again = make_set(seed=2, size=3)
    again.save(tmp_path / "set")
    assert torch.equal(DistilledSet.load(tmp_path / "set").images, again.images)
    assert os.listdir(tmp_path) == ["set"]


def test_the_folder_is_as_open_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert make_set().save(tmp_path / "set").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert len(DistilledSet.load(make_set().save(tmp_path / "set")).images) == 5


@pytest.mark.parametrize("with_set", [False, True])
def test_a_folder_with_other_files_is_refused_and_kept(tmp_path: Path, with_set: bool) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    if with_set:
        make_set().save(folder)
    (folder / "holiday.jpg").write_bytes(b"dear")
    before = contents(folder)
    with pytest.raises(InputError, match=r"no part of a distilled set \(holiday\.jpg\).*choose another folder"):
        make_set().save(folder)
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ["photos"]


def test_a_file_in_the_place_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("dear")
    with pytest.raises(InputError, match="is a file: choose another place"):
        make_set().save(tmp_path / "set")
    assert (tmp_path / "set").read_text() == "dear"


@pytest.mark.parametrize("place", ["write_tensors", "write_metadata", "_sync", "render_dataset_card"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_set_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, failure: BaseException
) -> None:
    folder = make_set().save(tmp_path / "set")
    before = contents(folder)

    def fail(*_: Any) -> None:
        raise failure

    modules = {"write_tensors": "sets.parquet", "_sync": "files"}
    monkeypatch.setattr(f"ssdd_hub.{modules.get(place, 'sets.distilled')}.{place}", fail)
    for name in ("set", "fresh"):
        with pytest.raises(type(failure)):
            make_set(seed=1).save(tmp_path / name)
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ["set"]


def test_a_rename_that_fails_puts_the_old_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_set().save(tmp_path / "set")
    before = contents(folder)
    rename = Path.rename

    def refuse_new(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(errno.EIO, "rename failed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(OSError, match="rename failed"):
        make_set(seed=1).save(folder)
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ["set"]


def test_a_set_that_is_replaced_while_it_is_listed_is_not_taken_for_foreign_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_set(seed=1).save(tmp_path / "set")
    listdir, listed = os.listdir, []

    def list_half_removed(path: Any) -> list[str]:
        if Path(path) == folder and not listed:
            listed.append(path)
            make_set(seed=2).save(folder)
            return ["data"]
        return listdir(path)

    monkeypatch.setattr(os, "listdir", list_half_removed)
    make_set(seed=3).save(folder)
    assert listed and torch.equal(DistilledSet.load(folder).images, make_set(seed=3).images)


def test_a_place_that_another_takes_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_set().save(tmp_path / "set")
    rename = Path.rename

    def come_first(path: Path, target: Path) -> Path:
        if path.name == "new":
            monkeypatch.setattr(Path, "rename", rename)
            make_set(seed=2).save(folder)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", come_first)
    with pytest.raises(OSError, match="not empty"):
        make_set(seed=1).save(folder)
    assert torch.equal(DistilledSet.load(folder).images, make_set(seed=2).images)
    assert os.listdir(tmp_path) == ["set"]


def test_a_kill_in_mid_save_leaves_the_old_set_in_the_place(tmp_path: Path) -> None:
    folder = make_set(seed=1).save(tmp_path / "set")
    before = contents(folder)
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2]);"
        "from ssdd_hub.sets import distilled; from test_distilled import make_set;"
        "distilled.write_metadata = lambda *_: os.kill(os.getpid(), 9);"
        "make_set(seed=2).save(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder), os.path.dirname(__file__)], capture_output=True)
    assert done.returncode == -9
    assert contents(folder) == before
    assert torch.equal(DistilledSet.load(make_set(seed=3).save(folder)).images, make_set(seed=3).images)


def test_an_end_before_the_tidying_leaves_the_new_set_in_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_set(seed=1).save(tmp_path / "set")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ssdd_hub.files.shutil.rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        make_set(seed=2).save(folder)
    assert torch.equal(DistilledSet.load(folder).images, make_set(seed=2).images)


# Damage


def test_a_place_without_a_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no distilled set at .*absent: the folder does not exist"):
        DistilledSet.load(tmp_path / "absent")
    with pytest.raises(InputError, match=r"is not a distilled set: it has no ssdd_hub\.json"):
        DistilledSet.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "", "\x00"])
def test_metadata_that_is_not_json_is_reported(tmp_path: Path, text: str) -> None:
    folder = make_set().save(tmp_path / "set")
    (folder / "ssdd_hub.json").write_text(text)
    with pytest.raises(InputError, match=r"ssdd_hub\.json is damaged, it is not JSON"):
        DistilledSet.load(folder)


@pytest.mark.parametrize(
    "text", ["[" * 31 + "]" * 31, '{"a":' * 31 + "1" + "}" * 31, "[" * 100_000, "[" * 10**5 + "]" * 10**5]
)
def test_metadata_that_is_nested_without_end_is_refused(tmp_path: Path, text: str) -> None:
    folder = make_set().save(tmp_path / "set")
    (folder / "ssdd_hub.json").write_text(text)
    with pytest.raises(InputError, match="must be nested at most 30 deep, and is deeper|is damaged, it is not JSON"):
        DistilledSet.load(folder)


def test_metadata_may_be_nested_30_deep(tmp_path: Path) -> None:
    value: Any = []
    for _ in range(27):
        value = [value]
    # The record, its provenance and 28 lists.
    folder = make_set(provenance={"deep": value}).save(tmp_path / "set")
    assert DistilledSet.load(folder).provenance["deep"] == value
    with pytest.raises(InputError, match="nested at most 30 deep; got .* leave something out of its provenance"):
        make_set(provenance={"deep": [value]}).save(tmp_path / "deeper")
    assert os.listdir(tmp_path) == ["set"]


def test_metadata_larger_than_a_record_can_be_is_neither_read_nor_written(tmp_path: Path) -> None:
    folder = make_set(provenance={"note": "a" * (8 * 2**20 - 2000)}).save(tmp_path / "set")
    path = folder / "ssdd_hub.json"
    path.write_bytes(path.read_bytes().ljust(8 * 2**20))
    assert len(DistilledSet.load(folder).provenance["note"]) == 8 * 2**20 - 2000
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(InputError, match="must be of at most 8388608 bytes, got 8388609: fetch or make"):
        DistilledSet.load(folder)
    with pytest.raises(InputError, match="must be of at most 8388608 bytes, .* leave something out of its provenance"):
        make_set(provenance={"note": "a" * 2**23}).save(tmp_path / "larger")
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.parametrize("version", [2, None, "1"])
def test_an_unknown_format_is_refused(tmp_path: Path, version: object) -> None:
    folder = make_set().save(tmp_path / "set")
    edit_metadata(folder, format_version=version)
    with pytest.raises(InputError, match=rf"format_version {version!r}, this ssdd_hub reads 1: upgrade"):
        DistilledSet.load(folder)
    (folder / "ssdd_hub.json").write_text("[]")
    with pytest.raises(InputError, match="format_version None"):
        DistilledSet.load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": {}},
        {"tensors": None},
        {"tensors": {"images": {"shape": [], "sha256": "0" * 64}, "targets": {"shape": [1], "sha256": "0" * 64}}},
        {"tensors": {"images": {"shape": [0, 3], "sha256": "0" * 64}, "targets": {"shape": [1], "sha256": "0" * 64}}},
        {"tensors": {"images": {"shape": 5, "sha256": ""}, "targets": {}}},
        {"pixel_space": {"mean": [0.5]}},
        {"pixel_space": {"mean": [0.5], "std": [0.0]}},
        {"pixel_space": 3},
        {"provenance": 7},
        {"label_names": 7},
    ],
)
def test_metadata_that_lacks_a_part_is_reported(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = make_set().save(tmp_path / "set")
    edit_metadata(folder, **changes)
    with pytest.raises(InputError, match=r"ssdd_hub\.json is incomplete .*fetch or make the set again"):
        DistilledSet.load(folder)


def test_missing_and_broken_parquet_is_reported(tmp_path: Path) -> None:
    folder = make_set().save(tmp_path / "set")
    whole = (folder / PARQUET).read_bytes()
    (folder / PARQUET).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="parquet files of .* are damaged"):
        DistilledSet.load(folder)
    (folder / PARQUET).unlink()
    with pytest.raises(InputError, match=r"has no data/train-\*\.parquet"):
        DistilledSet.load(folder)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    folder = make_set().save(tmp_path / "set")
    pq.write_table(pq.read_table(folder / PARQUET).drop_columns("target"), folder / PARQUET)
    with pytest.raises(InputError, match="lack the column 'target'"):
        DistilledSet.load(folder)


@pytest.mark.parametrize("shape", [[5, 3, 7, 6], [5, 3, 42], [4, 3, 6, 7], [5, 3, 6, 7, 1], [630]])
def test_a_shape_other_than_the_stated_one_is_reported(tmp_path: Path, shape: list[int]) -> None:
    folder = make_set().save(tmp_path / "set")
    tensors = json.loads((folder / "ssdd_hub.json").read_text())["tensors"]
    tensors["images"]["shape"] = shape
    edit_metadata(folder, tensors=tensors)
    with pytest.raises(InputError, match="column 'pixels' does not hold images of the stated shape"):
        DistilledSet.load(folder)


@pytest.mark.parametrize(("column", "name"), [("pixels", "images"), ("target", "targets"), ("label", "labels")])
def test_changed_values_are_caught_and_the_tensor_named(tmp_path: Path, column: str, name: str) -> None:
    folder = make_set(labels=torch.arange(5)).save(tmp_path / "set")
    other = make_set(seed=1, labels=torch.arange(5).flip(0)).save(tmp_path / "other")
    table, changed = pq.read_table(folder / PARQUET), pq.read_table(other / PARQUET)
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, table.field(index), changed[column]), folder / PARQUET)
    with pytest.raises(InputError, match=f"the {name} are not those that were saved, their sha256 differs"):
        DistilledSet.load(folder)


def test_no_flipped_byte_gets_through(tmp_path: Path) -> None:
    saved = make_set(size=2)
    folder = saved.save(tmp_path / "set")
    whole = (folder / PARQUET).read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 200)):
        broken = bytearray(whole)
        broken[position] ^= 0x55
        (folder / PARQUET).write_bytes(broken)
        try:
            loaded = DistilledSet.load(folder)
        except InputError:
            continue
        # The byte belonged to a column or a note that is not read.
        assert torch.equal(bits(loaded.images), bits(saved.images))
        assert torch.equal(bits(loaded.targets), bits(saved.targets))
