import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distilled import PARQUET, bits, contents, make_set

from ssdd_hub.errors import InputError
from ssdd_hub.sets.distilled import DistilledSet


@pytest.fixture
def folder(tmp_path):
    return make_set(seed=1).save(tmp_path / "set")


def test_a_folder_named_like_a_partition_is_read_as_a_folder(tmp_path):
    saved = make_set()
    assert torch.equal(DistilledSet.load(saved.save(tmp_path / "target=3" / "set")).targets, saved.targets)


def test_saving_replaces_a_set_or_an_empty_folder_and_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "set").mkdir()
    mode = (tmp_path / "set").stat().st_mode
    for seed, size in ((1, 5), (2, 3)):
        saved = make_set(seed=seed, size=size)
        assert saved.save(tmp_path / "set").stat().st_mode == mode
        assert torch.equal(DistilledSet.load(tmp_path / "set").images, saved.images)
    assert os.listdir(tmp_path) == ["set"]


def test_other_files_beside_the_shards_are_kept_too(tmp_path):
    make_set().save(tmp_path / "set")
    (tmp_path / "set" / "data" / "notes.txt").write_text("dear")
    before = contents(tmp_path / "set")
    with pytest.raises(InputError, match=r"no part of a distilled set \(data/notes\.txt\)"):
        make_set().save(tmp_path / "set")
    assert contents(tmp_path / "set") == before


@pytest.mark.parametrize("with_set", [False, True])
def test_a_folder_with_other_files_is_refused_and_kept(tmp_path, with_set):
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


def test_a_file_in_the_place_is_refused_and_kept(tmp_path):
    (tmp_path / "set").write_text("dear")
    with pytest.raises(InputError, match="is a file: choose another place"):
        make_set().save(tmp_path / "set")
    assert (tmp_path / "set").read_text() == "dear"


PLACES = ["sets.parquet.write_tensors", "sets.distilled.write_metadata", "files._sync"]


@pytest.mark.parametrize("place", [*PLACES, "sets.distilled.render_dataset_card"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_set_alone(folder, monkeypatch, place, failure):
    def fail(*_):
        raise failure

    before = contents(folder)
    monkeypatch.setattr(f"ssdd_hub.{place}", fail)
    for name in ("set", "fresh"):
        with pytest.raises(type(failure)):
            make_set().save(folder.parent / name)
    assert contents(folder) == before and os.listdir(folder.parent) == ["set"]


def test_a_rename_that_fails_puts_the_old_set_back(folder, monkeypatch):
    before, rename = contents(folder), Path.rename

    def refuse_new(path, target):
        if path.name == "new":
            raise OSError(errno.EIO, "rename failed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(OSError, match="rename failed"):
        make_set().save(folder)
    assert contents(folder) == before and os.listdir(folder.parent) == ["set"]


def test_a_set_that_is_replaced_while_it_is_listed_is_not_taken_for_foreign_files(folder, monkeypatch):
    listdir, listed = os.listdir, []

    def list_half_removed(path):
        if Path(path) == folder and not listed:
            listed.append(path)
            make_set(seed=2).save(folder)
            return ["data"]
        return listdir(path)

    monkeypatch.setattr(os, "listdir", list_half_removed)
    make_set(seed=3).save(folder)
    assert listed and torch.equal(DistilledSet.load(folder).images, make_set(seed=3).images)


def test_a_place_that_another_takes_is_left_to_it(folder, monkeypatch):
    rename = Path.rename

    def come_first(path, target):
        if path.name == "new":
            monkeypatch.setattr(Path, "rename", rename)
            make_set(seed=2).save(folder)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", come_first)
    with pytest.raises(OSError, match="not empty"):
        make_set().save(folder)
    assert torch.equal(DistilledSet.load(folder).images, make_set(seed=2).images)
    assert os.listdir(folder.parent) == ["set"]


def test_a_kill_in_mid_save_leaves_the_old_set_in_the_place(folder):
    before = contents(folder)
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2]);"
        "from ssdd_hub.sets import distilled; from test_distilled import make_set;"
        "distilled.write_metadata = lambda *_: os.kill(os.getpid(), 9);"
        "make_set(seed=2).save(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder), os.path.dirname(__file__)], capture_output=True)
    assert done.returncode == -9 and contents(folder) == before
    assert torch.equal(DistilledSet.load(make_set(seed=3).save(folder)).images, make_set(seed=3).images)


def test_an_end_before_the_tidying_leaves_the_new_set_in_the_place(folder, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ssdd_hub.files.shutil.rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        make_set(seed=2).save(folder)
    assert torch.equal(DistilledSet.load(folder).images, make_set(seed=2).images)


def test_metadata_may_be_nested_30_deep(tmp_path):
    value: Any = []
    for _ in range(27):
        value = [value]
    # The record, its provenance and 28 lists.
    folder = make_set(provenance={"deep": value}).save(tmp_path / "set")
    assert DistilledSet.load(folder).provenance["deep"] == value
    with pytest.raises(InputError, match="nested at most 30 deep; got .* leave something out of its provenance"):
        make_set(provenance={"deep": [value]}).save(tmp_path / "deeper")
    assert os.listdir(tmp_path) == ["set"]


def test_metadata_larger_than_a_record_can_be_is_neither_read_nor_written(tmp_path):
    notes = ["a" * 90_000] * 92  # of the longest texts that a record may hold, nearly as many as it may
    folder = make_set(provenance={"notes": notes}).save(tmp_path / "set")
    path = folder / "ssdd_hub.json"
    path.write_bytes(path.read_bytes().ljust(8 * 2**20))
    assert DistilledSet.load(folder).provenance["notes"] == notes
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(InputError, match="must be of at most 8388608 bytes, got 8388609: fetch or make"):
        DistilledSet.load(folder)
    with pytest.raises(InputError, match="must be of at most 8388608 bytes, .* leave something out of its provenance"):
        make_set(provenance={"notes": [*notes, *notes[:2]]}).save(tmp_path / "larger")
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": None},
        {"tensors": {"images": {"shape": 5, "sha256": ""}, "targets": {}}},
        {"pixel_space": {"mean": [0.5]}},
        {"pixel_space": 3},
        {"provenance": 7},
        {"label_names": 7},
    ],
)
def test_metadata_that_lacks_a_part_is_reported(folder, changes):
    path = folder / "ssdd_hub.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(
        InputError, match=rf"ssdd_hub\.json is not the record .*{next(iter(changes))}.*fetch or make the set again"
    ):
        DistilledSet.load(folder)


def test_no_flipped_byte_gets_through(tmp_path):
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
