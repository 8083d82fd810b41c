import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_folders import (
    IMAGE_CARD,
    IMAGES,
    STRUCTURE,
    banks_of,
    encode,
    flat,
    picture,
    read,
    reds,
    refuses,
    save_as,
    save_folder,
    stream_of as stream,
    write,
)
from datasets import Dataset
from PIL import Image

from ssdd_hub.data.bank import DataSettings
from ssdd_hub.data.decode import CorruptImageError
from ssdd_hub.data.stream import named_in
from ssdd_hub.errors import SettingsError

SHARED = Path(__file__).parents[3] / "shared" / "data"
COLOURS = [(index, 0, 9) for index in range(150)]


def save_parquet(folder, values, size=8, files=1, split="train"):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(len(values)), files)):
        images = [values[index] for index in part]
        images = [image if isinstance(image, bytes) else encode(flat(image, size)) for image in images]
        table = Dataset.from_dict({"image": [{"bytes": image, "path": None} for image in images]}, IMAGES)
        table.to_parquet(folder / "data" / f"{split}-{number}.parquet")
    return folder


def test_all_rows_come_in_their_order_with_their_pixels(tmp_path):
    images = stream(save_parquet(tmp_path / "set", COLOURS, files=3))
    pixels = read(images)
    assert pixels.shape == (150, 3, 8, 8) and pixels.dtype == torch.uint8
    assert pixels[:, 0, 3, 4].tolist() == list(range(150)) and (pixels[:, 2] == 9).all()
    assert (images.image_size, images.mode, images.num_channels) == (8, "rgb", 3)
    # A second pass reads the same.
    assert torch.equal(read(images), pixels)


@pytest.mark.parametrize("layout", ["parquet", "folder", "zip", "saved"])
def test_every_layout_gives_what_load_images_gives(tmp_path, layout):
    folder = save_as(tmp_path / "set", layout, {f"{index:03}.png": picture(index) for index in range(12)})
    loaded = sorted(sum(map(reds, banks_of(folder, image_size=16)), []))
    images = stream(folder, image_size=16)
    assert read(images).shape == (12, 3, 16, 16) and reds(images) == loaded == list(range(12))


def test_real_images_are_those_of_load_images():
    if not (SHARED / "cifar100-mini").exists():
        pytest.skip("the images of cifar100-mini are not beside this clone")
    bank, _ = banks_of(SHARED / "cifar100-mini", split="test", heldout_split="train")
    assert torch.equal(read(stream(SHARED / "cifar100-mini", split="test", max_images=100)), bank.pixels[:100])


def test_max_images_takes_the_first(tmp_path):
    images = stream(save_parquet(tmp_path / "set", COLOURS), max_images=70)
    assert reds(images) == list(range(70))
    assert images.provenance["selection"] == "the first 70"
    assert reds(stream(tmp_path / "set", max_images=999)) == list(range(150))


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path, monkeypatch):
    images = stream(save_parquet(tmp_path / "set", COLOURS))
    monkeypatch.setattr("ssdd_hub.data.bank.decode_image", None)
    assert sum(1 for _ in images.rows()) == 150


def test_the_number_of_rows_is_stated_where_it_is_known(tmp_path):
    folder = save_parquet(tmp_path / "set", COLOURS[:9])
    assert stream(folder).num_rows is None
    card = "dataset_info:\n  features:\n  - name: image\n    dtype: image\n  splits:\n  - name: train\n"
    (folder / "README.md").write_text(f"---\n{card}    num_examples: 9\n    num_bytes: 1\n---\n")
    assert stream(folder).num_rows == 9 and stream(folder, max_images=4).num_rows == 4
    Dataset.from_dict({"image": [Image.new("L", (8, 8))] * 3}).save_to_disk(tmp_path / "saved")
    assert stream(tmp_path / "saved").num_rows == 3


def test_provenance_says_where_the_images_come_from(tmp_path):
    folder = save_parquet(tmp_path / "set", COLOURS[:9])
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    images = stream(folder)
    facts = {"name": "set", "config": "default", "revision": None, "image_column": "image", "license": "cc0-1.0"}
    facts |= {"split": "train", "selection": "all", "image_size": 8, "mode": "rgb"}
    assert images.provenance == facts | {"fingerprint": images.fingerprint}


def test_size_and_mode_are_those_of_the_first_image(tmp_path):
    images = stream(save_parquet(tmp_path / "grey", [3, 4, 5], size=12))
    assert (images.image_size, images.mode) == (12, "grey") and read(images).shape == (3, 1, 12, 12)
    # Grey images after a first one with colours become RGB.
    mixed = stream(save_parquet(tmp_path / "mixed", [(1, 2, 3), 7]))
    assert read(mixed)[1, :, 0, 0].tolist() == [7, 7, 7]


def test_size_and_mode_can_be_stated(tmp_path):
    folder = save_parquet(tmp_path / "set", [7, (9, 9, 9)], size=100)
    assert read(stream(folder, image_size=20, mode="rgb")).shape == (2, 3, 20, 20)
    assert read(stream(folder, image_size=20, mode="grey"))[:, 0, 0, 0].tolist() == [7, 9]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([7, 8, (9, 0, 0)], "first image is grey and the one at row 2 .* has colours: pass --data.mode rgb"),
        ([(0, 0, 0), picture(1, 9)], r"8x8 pixels at first, 9x9 at row 1 \(001.png\); pass --data.image-size"),
        ([7, 8, b"no image"], r"row 2 \(002.png\) of the split 'train' .*cannot be decoded .*--data.on-corrupt skip"),
    ],
)
def test_a_later_image_that_cannot_be_taken_is_refused_by_name(tmp_path, values, message):
    refuses(read, message, stream(save_folder(tmp_path / "set", values)))


def test_a_first_image_too_large_to_keep_its_size_is_refused(tmp_path):
    folder = save_parquet(tmp_path / "set", COLOURS[:2], size=100)
    refuses(stream, "the image at row 0 is 100x100 pixels; .*pass --data.image-size", folder)


def test_an_image_that_cannot_be_decoded_can_be_skipped(tmp_path):
    images = stream(save_parquet(tmp_path / "set", [b"no image", (1, 0, 0), b"", (3, 0, 0)]), on_corrupt="skip")
    assert images.image_size == 8
    for number, row in enumerate(images.rows()):
        if number % 2:
            assert row()[0, 0, 0].item() == number
        else:
            with pytest.raises(CorruptImageError, match=f"^row {number}: (text that begins|it is empty)"):
                row()


def test_a_stream_of_nothing_that_can_be_decoded_is_refused(tmp_path):
    folder = save_parquet(tmp_path / "set", [b"no image"] * 3)
    message = "none of the 3 images of the split 'train' .* can be decoded; .*row 0: text that begins with 'no image'"
    refuses(stream, message, folder, on_corrupt="skip")
    refuses(stream, "row 0 of the split 'train' .*cannot be decoded", folder)


def test_whatever_the_pixels_depend_on_changes_the_fingerprint(tmp_path):
    folder = save_parquet(tmp_path / "set", COLOURS[:9], files=2)
    save_parquet(folder, COLOURS[:9], split="test")
    requests = [{}, {"split": "test"}, {"image_size": 16}, {"mode": "grey"}, {"max_images": 5}, {"on_corrupt": "skip"}]
    assert len({stream(folder, **settings).fingerprint for settings in requests}) == len(requests)
    assert stream(folder, mode="rgb").fingerprint == stream(folder).fingerprint == stream(folder).fingerprint


def test_a_changed_file_changes_the_fingerprint_and_a_moved_folder_does_not(tmp_path):
    folder = save_parquet(tmp_path / "set", COLOURS[:9], files=2)
    before = stream(folder).fingerprint
    moved = folder.rename(tmp_path / "moved")
    assert stream(moved).fingerprint == before
    file = moved / "data" / "train-1.parquet"
    time = file.stat().st_mtime_ns
    for later in (1, 0):
        os.utime(file, ns=(time, time + later))
        assert (stream(moved).fingerprint == before) == (later == 0)
    save_parquet(moved, COLOURS[:3], split="extra")
    assert stream(moved).fingerprint == before


def test_other_files_of_the_same_names_sizes_and_times_are_others(tmp_path):
    """As bitmaps of one size have them, from archives of which all times are fixed."""
    found = []
    for shade in (1, 2):
        folder = tmp_path / str(shade) / "set"
        for index in range(3):
            Image.new("RGB", (8, 8), (shade, index, 0)).save(write(folder / f"{index}.bmp", b""))
            os.utime(folder / f"{index}.bmp", (0, 0))
        found.append(
            (stream(folder).fingerprint, banks_of(folder, cache=str(tmp_path / "kept"))[0].pixels[0, 0, 0, 0])
        )
    assert found[0][0] != found[1][0] and (found[0][1], found[1][1]) == (1, 2)


@pytest.mark.parametrize("layout", ["parquet", "texts", "mixed", "csv", "jsonl"])
def test_a_changed_file_that_a_row_names_changes_the_fingerprint(tmp_path, layout):
    folder = tmp_path / "set"
    files = [write(folder / "pictures" / f"{index}.png", picture(index)) for index in range(4)]
    names = [f"pictures/{file.name}" for file in files]
    rows = [
        {"bytes": picture(9) if layout == "mixed" and index < 2 else None, "path": name}
        for index, name in enumerate(names)
    ]
    if layout in ("parquet", "mixed"):
        pq.write_table(pa.table({"image": pa.array(rows, STRUCTURE)}), folder / "train.parquet", row_group_size=3)
    elif layout == "texts":
        pq.write_table(pa.table({"image": names}), folder / "train.parquet")
    else:
        texts = ["image", *names] if layout == "csv" else [json.dumps({"image": name}) for name in names]
        write(folder / f"train.{layout}", "\n".join(texts))
    write(folder / "README.md", IMAGE_CARD)
    before, cache = stream(folder).fingerprint, tmp_path / "cache"
    assert stream(folder).fingerprint == before
    first = reds(stream(folder, cache=str(cache)))
    assert first == ([9, 9, 2, 3] if layout == "mixed" else [0, 1, 2, 3])
    write(files[3], picture(77))
    assert stream(folder).fingerprint != before
    assert reds(stream(folder, cache=str(cache))) == [*first[:3], 77]
    changed = stream(folder).fingerprint
    # Of a row that holds its image, the file does not count.
    write(files[0], picture(55))
    assert (stream(folder).fingerprint == changed) == (layout == "mixed")


def test_contents_of_a_table_are_not_read_to_find_the_files_that_its_rows_name(tmp_path, monkeypatch):
    folder, asked = save_parquet(tmp_path / "set", COLOURS[:9]), []
    iterate = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: asked.append(k) or iterate(*a, **k))
    assert list(named_in(str(folder / "data" / "train-0.parquet"), "image")) == [] and not asked
    pq.write_table(
        pa.table({"image": pa.array([{"bytes": None, "path": "a.png"}], STRUCTURE)}), tmp_path / "b.parquet"
    )
    assert list(named_in(str(tmp_path / "b.parquet"), "image")) == ["a.png"]
    assert [each["columns"] for each in asked] == [["image.path"]]


def test_a_saved_dataset_has_a_fingerprint_of_its_files(tmp_path):
    for name in ("a", "b"):
        Dataset.from_dict({"image": [Image.new("L", (8, 8))] * (3 + len(name))}).save_to_disk(tmp_path / name)
    prints = [stream(tmp_path / name).fingerprint for name in ("a", "b", "a")]
    assert prints[0] == prints[2] != prints[1]


def test_mistakes_are_named(tmp_path):
    folder = save_parquet(tmp_path / "set", COLOURS[:3])
    refuses(stream, r"no split 'tran' \(--data.split\); available: train; did you mean 'train'", folder, split="tran")
    refuses(stream, r"no column 'img' \(--data.image-column\)", folder, image_column="img")
    refuses(stream, "the folder './no/such' does not exist", "./no/such")
    refuses(stream, "holds no images", save_parquet(tmp_path / "empty", []))


def test_a_damaged_file_is_reported(tmp_path):
    folder = save_parquet(tmp_path / "set", COLOURS, files=2)
    images = stream(folder)
    file = folder / "data" / "train-1.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    refuses(read, "cannot be read: ", images)


def test_digits_and_distillation_take_no_stream(tmp_path):
    with pytest.raises(SettingsError, match="digits are in memory: leave out --data.streaming"):
        DataSettings(streaming=True)
    refuses(banks_of, "--data.streaming reads images once .*leave it out", tmp_path, streaming=True)


def test_other_files_beside_the_images_do_not_count(tmp_path):
    folder = save_folder(tmp_path / "set", COLOURS[:3])
    before = stream(folder).fingerprint
    (folder / "0 notes.txt").write_text("nothing")
    assert reds(stream(folder)) == [0, 1, 2] and stream(folder).fingerprint == before


def pass_over(images, fails_at=()):
    """The values of all rows of a pass, or why there is none."""
    found = []
    for number, row in enumerate(images.rows()):
        if number not in fails_at:
            try:
                found.append(int(row()[0, 0, 0]))
            except CorruptImageError as error:
                found.append(str(error))
    return found


@pytest.mark.parametrize("layout", ["parquet", "tar", "folder"])
def test_a_second_pass_reads_what_the_first_one_has_decoded(tmp_path, monkeypatch, layout):
    contents = {f"{index:03}.png": b"no image" if index == 4 else picture(index) for index in range(9)}
    folder, cache = save_as(tmp_path / "set", layout, contents), str(tmp_path / "kept")
    settings = {"image_size": 16, "on_corrupt": "skip"}
    first = stream(folder, **settings)
    expected = pass_over(first)
    images = stream(folder, cache=cache, **settings)
    assert images.fingerprint == first.fingerprint and images.provenance == first.provenance
    # A part of the rows at first, as another process computes the others.
    assert pass_over(images, fails_at=(0, 4, 7)) == [expected[row] for row in (1, 2, 3, 5, 6, 8)]
    other = stream(folder, cache=cache, **settings)
    monkeypatch.setattr("ssdd_hub.data.bank.decode_image", lambda *given: pytest.fail("a row was decoded again"))
    for row, decode in enumerate(other.rows()):
        if row not in (0, 4, 7):
            assert int(decode()[0, 0, 0]) == expected[row]
    monkeypatch.undo()
    assert pass_over(other) == expected and len(list(tmp_path.glob("kept/*/rows-*.pixels"))) == 2
    for each in (other, stream(folder, cache=cache, **settings)):
        monkeypatch.setattr(each._source, "stream", lambda: pytest.fail("the stream was read again"))
        assert pass_over(each) == expected
    assert torch.equal(torch.stack([row() for n, row in enumerate(each.rows()) if n != 4]), read_sound(first, 4))


def read_sound(images, corrupt):
    return torch.stack([row() for number, row in enumerate(images.rows()) if number != corrupt])


def test_damaged_rows_of_a_stream_are_refused_and_torn_ones_decoded_again(tmp_path):
    folder, cache = save_parquet(tmp_path / "set", COLOURS[:9]), str(tmp_path / "kept")
    assert pass_over(stream(folder, cache=cache)) == list(range(9))
    (pixels,) = tmp_path.glob("kept/*/rows-00000.pixels")
    content = pixels.read_bytes()
    # As after a kill: the last image is not whole.
    os.truncate(pixels, len(content) - 1)
    assert pass_over(stream(folder, cache=cache)) == list(range(9)) and pixels.read_bytes() == content
    pixels.write_bytes(content[:200] + b"x" + content[201:])
    refuses(pass_over, r"rows-00000.pixels is damaged at image 1: remove ", stream(folder, cache=cache))
    (pixels.parent / "index.json").write_text('{"key": {}, "num_rows": 9}')
    refuses(
        pass_over, r"does not hold the rows of this stream \(index.json is of others\)", stream(folder, cache=cache)
    )
