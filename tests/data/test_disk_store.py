"""Decoded images on the disk: as those in memory, written once, and refused where they are not whole."""

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from data_folders import banks_of, flat, picture, reds, refuses, save_as, save_folder
from PIL import Image
from reference.warm import Running

from ssdd_hub.data import bank
from ssdd_hub.data.bank import DataSettings
from ssdd_hub.data.pixel_files import map_pixels
from ssdd_hub.errors import SettingsError

WORKER = Path(__file__).parents[1] / "reference" / "cache_worker.py"
HELDOUT = 2  # images of the split `test`


def save_splits(folder, values, size=8):
    save_folder(folder / "train", values, size)
    save_folder(folder / "test", [(200 + index, 0, 0) for index in range(HELDOUT)], size)
    return folder


def slope(value, size=20):
    """An image that differs from pixel to pixel, grey or in colours, which is resized."""
    ramp = Image.linear_gradient("L").resize((size, size + 7)).point(lambda level: (level + 37 * value) % 256)
    return ramp if value < 4 else Image.merge("RGB", [ramp, ramp.rotate(180), ramp.rotate(90).resize(ramp.size)])


def save_slopes(folder, values):
    for split, numbers in {"train": values, "test": [9, 10]}.items():
        (folder / split).mkdir(parents=True)
        for value in numbers:
            slope(value).save(folder / split / f"{value:03}.png")
    return folder


def whole(cache):
    """The files of the source's images in a cache, by name."""
    folders = {path: json.loads((path / "index.json").read_text()) for path in cache.glob("images-*")}
    (folder,) = [path for path, index in folders.items() if index["key"]["split"] == "train"]
    return folder, {path.name: path for path in folder.iterdir()}


def same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.pixels, other.pixels) and one.provenance == other.provenance
        assert (one.labels is None) == (other.labels is None)
        assert one.labels is None or torch.equal(one.labels, other.labels)


@pytest.fixture
def none_decoded(monkeypatch):
    """From its call on, no image is decoded."""
    return lambda: monkeypatch.setattr(bank, "decode_image", None)


def test_images_with_colour_after_grey_ones_are_those_in_memory_and_are_decoded_once(tmp_path, none_decoded):
    folder = save_slopes(tmp_path / "set", range(8))
    in_memory = banks_of(folder, image_size=16)
    for _ in range(2):
        kept = banks_of(folder, image_size=16, cache=str(tmp_path / "kept"))
        same(kept, in_memory)
        assert [each.on_disk for each in (*kept, *in_memory)] == [True, True, False, False]
        none_decoded()
    assert sorted(whole(tmp_path / "kept")[1]) == [".lock", "index.json", "rgb-16.pixels"]


@pytest.mark.parametrize("settings", [{}, {"mode": "grey"}, {"image_size": 12, "mode": "rgb", "max_images": 5}])
def test_so_are_those_of_other_sizes_and_modes_with_classes_and_some_left_out(tmp_path, settings, none_decoded):
    values = [b"", 3, b"no image", *range(4, 9), b"", 9]
    for name in ("cat", "dog"):
        save_splits(tmp_path / name, values)
        for split in ("train", "test"):
            (tmp_path / "set" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / split).rename(tmp_path / "set" / split / name)
    settings = {"on_corrupt": "skip", **settings}
    in_memory = banks_of(tmp_path / "set", **settings)
    for _ in range(2):
        same(banks_of(tmp_path / "set", cache=str(tmp_path / "kept"), **settings), in_memory)
        none_decoded()


def test_pixels_above_the_budget_are_kept_in_the_users_cache_and_copies_of_them_in_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = save_splits(tmp_path / "set", [(value, 0, 0) for value in range(9)])
    room = 9 * 3 * 64 * 64 / 1e9  # for what may come, where no size is given
    kept, _ = banks_of(folder, memory_budget_gb=room)
    assert not kept.on_disk and not (tmp_path / "home").exists()
    kept, heldout = banks_of(folder, memory_budget_gb=room * 0.9)
    assert kept.on_disk and not heldout.on_disk and whole(tmp_path / "home" / "ssdd_hub" / "images")
    kept, _ = banks_of(folder, memory_budget_gb=2 * 192 / 1e9)
    few, more = kept.subset([3, 1]), kept.subset(torch.tensor([5, 0, 8]))
    assert (reds(few), few.on_disk, reds(more), more.on_disk) == ([3, 1], False, [5, 0, 8], True)


@pytest.mark.parametrize("layout", ["folder", "parquet", "zip", "jpeg"])
def test_other_images_under_the_same_name_are_decoded_anew(tmp_path, layout):
    def load():
        return reds(banks_of(tmp_path / "set", image_size=16, heldout_fraction=0.4, cache=str(tmp_path / "kept"))[0])

    names = {f"{index:03}.png": picture(index) for index in range(5)}
    if layout == "jpeg":  # named by the rows of a table, of which no file changes
        folder = save_folder(tmp_path / "set", [(index, 0, 0) for index in range(5)])
        rows = [json.dumps({"image": name}) for name in sorted(path.name for path in folder.iterdir())]
        card = "configs:\n- config_name: default\n  data_files: rows.jsonl\ndataset_info:\n  features:\n"
        (folder / "README.md").write_text(f"---\n{card}  - name: image\n    dtype: image\n---\n")
        (folder / "rows.jsonl").write_text("\n".join(rows))
    else:
        save_as(tmp_path / "set", layout, names)
    before = load()
    assert load() == before
    changed = {name: picture(100 + index) for index, name in enumerate(names)}
    if layout == "jpeg":
        save_folder(tmp_path / "set", [(100 + index, 0, 0) for index in range(5)])
    else:
        save_as(tmp_path / "set", layout, changed)
    assert load() == [100 + value for value in before]


def test_a_moved_folder_and_another_budget_find_the_same_images(tmp_path, none_decoded):
    cache = str(tmp_path / "kept")
    banks_of(save_splits(tmp_path / "set", [1, 2, 3]), cache=cache)
    none_decoded()
    assert reds(banks_of((tmp_path / "set").rename(tmp_path / "moved"), cache=cache, memory_budget_gb=0)[0]) == [
        1,
        2,
        3,
    ]


def truncate(folder, files):
    os.truncate(files["grey-8.pixels"], 100)


def flip(folder, files):
    content = bytearray(files["grey-8.pixels"].read_bytes())
    content[70] ^= 1
    files["grey-8.pixels"].write_bytes(content)


def become_foreign(folder, files):
    index = json.loads(files["index.json"].read_text())
    files["index.json"].write_text(json.dumps({**index, "key": {**index["key"], "split": "other"}}))


def tear(folder, files):
    files["index.json"].write_text('{"key"')


def state_a_path(folder, files):
    index = json.loads(files["index.json"].read_text())
    files["index.json"].write_text(json.dumps({**index, "mode": "../../grey"}))


def link(folder, files):
    files["grey-8.pixels"].rename(folder.parent / "elsewhere")
    files["grey-8.pixels"].symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"not the size that index.json states\): remove it, and they are decoded again"),
        (flip, r"the sha256 of the pixels is not the one that was written\): remove it"),
        (become_foreign, r"index.json is of others\): remove it"),
        (tear, "does not hold the decoded images, whole"),
        (state_a_path, "does not hold the decoded images, whole"),
        (link, "is a link to"),
    ],
)
def test_a_damaged_or_foreign_cache_is_refused_and_its_removal_helps(tmp_path, damage, message):
    folder, cache = save_splits(tmp_path / "set", [1, 2, 3]), tmp_path / "kept"
    banks_of(folder, cache=str(cache))
    place, files = whole(cache)
    damage(place, files)
    refuses(banks_of, message, folder, cache=str(cache))
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    assert reds(banks_of(folder, cache=str(cache))[0]) == [1, 2, 3]


def start(tmp_path, name, folder, cache, dies_at=-1, modes="ignored"):
    settings = json.dumps({"name": str(folder), "image_size": 16, "cache": str(cache)})
    return tmp_path / f"{name}.json", Running(WORKER, tmp_path / f"{name}.json", settings, dies_at, modes)


def result(started, timeout=240):
    place, process = started
    process.finish(timeout)
    return json.loads(place.read_text())


def test_killed_processes_resume_two_share_and_a_folder_that_cannot_be_written_is_read(tmp_path):
    folder, cache = save_slopes(tmp_path / "set", range(8)), tmp_path / "kept"
    (bank, _), values = banks_of(folder, image_size=16), 8 + HELDOUT
    # In the third grey image, and after the first with colour, for which the grey ones were written again.
    for dies_at in (2, 6):
        _, killed = start(tmp_path, "killed", folder, cache, dies_at)
        assert killed.wait()[0] == -signal.SIGKILL
    partial = next(cache.glob("images-*/rgb-16.pixels"))
    assert partial.stat().st_size > 6 * 768 and not list(cache.glob("*/index.json"))
    # What a machine that stopped has lost of the pixels is decoded again.
    content = bytearray(partial.read_bytes())
    content[5 * 768] ^= 1
    partial.write_bytes(content)
    both = [start(tmp_path, name, folder, cache) for name in ("one", "two")]
    found = [result(each) for each in both]
    assert [fingerprint for fingerprint, _ in found] == [bank.fingerprint] * 2
    assert sum(decoded for _, decoded in found) == values - 5
    if sys.platform != "linux":
        return
    for place in (*cache.iterdir(), cache):
        place.chmod(0o555)
    other = save_slopes(tmp_path / "other", range(3))
    read, refused = (start(tmp_path, each.name, each, cache, modes="obeyed") for each in (folder, other))
    assert result(read) == [bank.fingerprint, 0]
    message, decoded = result(refused)
    assert "does not hold the decoded images and cannot be written or locked" in message and decoded == 0


def test_a_full_disk_is_said_before_an_image_is_written(tmp_path, monkeypatch):
    folder = save_splits(tmp_path / "set", [1, 2, 3])
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=3 * 64 - 1))
    refuses(banks_of, "the pixels need 0.0 GB in .*, or another --data.cache", folder, cache=str(tmp_path / "kept"))
    assert not list((tmp_path / "kept").glob("*/*.pixels"))


def test_more_pixels_than_the_machine_has_memory_are_mapped(tmp_path):
    count = 2 * psutil.virtual_memory().total // 2**20
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(count * 2**20)
        file.seek((count - 1) * 2**20)
        file.write(b"\7")
    pixels = map_pixels(tmp_path / "sparse", (count, 1, 1024, 1024))
    assert pixels[[0, count - 1], 0, 0, 0].tolist() == [0, 7]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(SettingsError, match="digits are in memory: leave out --data.cache"):
        DataSettings(cache="cache")
    folder = save_splits(tmp_path / "set", [1, 2, 3])
    message = "is inside --data.name .*, and what is kept there would be read as images: choose another folder"
    for place in (folder, folder / "train" / "cache"):
        refuses(banks_of, message, folder, cache=str(place))
    (tmp_path / "file").write_text("")
    refuses(banks_of, "cannot be written or locked", folder, cache=str(tmp_path / "file"))
    flat(1).save(folder / "train" / "999.png")
    (folder / "train" / "000.png").write_bytes(b"no image")
    # A call that failed holds no lock.
    for _ in range(2):
        refuses(banks_of, "row 0 .*cannot be decoded", folder, cache=str(tmp_path / "kept"))
