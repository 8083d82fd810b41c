import errno
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_folders import (
    STRUCTURE,
    banks_of as load,
    encode,
    flat,
    reds,
    refuses,
    save_as,
    save_folder,
    write,
    write_card,
)
from datasets import ClassLabel, Dataset, DatasetDict, Features
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError

from ssdd_hub.data import bank as images_module
from ssdd_hub.data.bank import DataSettings, ImageBank, fingerprint_pixels, load_images
from ssdd_hub.errors import InputError, SettingsError

SHARED = Path(__file__).parents[3] / "shared" / "data"
UNKNOWN_FORMAT = (
    "damaged at its start, or in no accepted format; convert it to one of AVIF, BMP, GIF, JPEG, JPEG2000, PNG, "
    "PPM, QOI, TIFF, WEBP"
)


def save_parquet(folder, split="train", rows=4, card=None, **columns):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    columns = columns or {"image": [flat((i, 0, 0)) for i in range(rows)]}
    Dataset.from_dict(columns).to_parquet(folder / "data" / f"{split}-0.parquet")
    if card:
        write(folder / "README.md", f"---\n{card}\n---\n")
    return folder


def write_splits(folder, *splits):
    """A card that names the splits of `save_parquet`."""
    files = [{"split": split, "path": f"data/{split}-*"} for split in splits]
    write_card(folder, [{"config_name": "default", "data_files": files}])


def test_digits_are_grey_enlarged_and_split_the_same_way_every_time():
    images, heldout = load_images(DataSettings(), progress=False)
    assert images.pixels.shape == (1397, 1, 16, 16) and images.pixels.dtype == torch.uint8
    assert heldout.pixels.shape == (400, 1, 16, 16)
    assert (images.num_channels, images.image_size, len(images)) == (1, 16, 1397)
    assert images.label_names == [str(digit) for digit in range(10)]
    assert heldout.labels[:8].tolist() == [2, 7, 4, 0, 4, 2, 7, 7]
    assert images.provenance["license"] == "cc-by-4.0"
    assert (images.provenance["split"], heldout.provenance["split"]) == ("train", "test")


def test_digits_at_their_native_size_are_the_values_of_scikit_learn():
    from sklearn.datasets import load_digits

    images, heldout = load_images(DataSettings(image_size=8), progress=False)
    loaded = torch.cat([images.pixels, heldout.pixels]).flatten(1)
    expected = torch.from_numpy(np.rint(load_digits().data * 255 / 16)).to(torch.uint8)
    assert sorted(map(tuple, loaded.tolist())) == sorted(map(tuple, expected.tolist()))
    labels = torch.cat([images.labels, heldout.labels])
    assert labels.bincount().tolist() == np.bincount(load_digits().target).tolist()


def test_digits_can_be_loaded_in_colour_swapped_and_without_labels():
    settings = DataSettings(split="test", heldout_split="train", mode="rgb", label_column="none", max_images=5)
    images, heldout = load_images(settings, progress=False)
    assert images.pixels.shape == heldout.pixels.shape == (5, 3, 16, 16)
    assert torch.equal(images.pixels[:, 0], images.pixels[:, 2])
    assert images.labels is images.label_names is None


def test_a_part_of_the_split_is_held_out_when_there_is_no_other(tmp_path):
    folder = save_folder(tmp_path / "pictures", [(i, 0, 0) for i in range(20)])
    images, heldout = load(folder, heldout_fraction=0.25)
    assert (len(images), len(heldout)) == (15, 5)
    assert sorted(reds(images) + reds(heldout)) == list(range(20))
    assert images.labels is None
    assert images.provenance["selection"] == "all but 0.25 held out by seed 0"
    assert reds(load(folder, heldout_fraction=0.25)[1]) == reds(heldout)
    assert reds(load(folder, seed=1, heldout_fraction=0.25)[1]) != reds(heldout)


def test_the_held_out_part_has_at_least_one_image_and_leaves_one(tmp_path):
    folder = save_folder(tmp_path / "pictures", [(0, 0, 0), (1, 0, 0)])
    for fraction in (0.01, 0.99):
        assert [len(bank) for bank in load(folder, heldout_fraction=fraction)] == [1, 1]
    with pytest.raises(InputError, match="the split 'train' holds a single image; name another --data.heldout-split"):
        load(save_folder(tmp_path / "single", [(0, 0, 0)]))


def test_max_images_draws_from_both_sides_by_seed_and_keeps_them_apart(tmp_path):
    folder = save_folder(tmp_path / "pictures", [(i, 0, 0) for i in range(30)])
    images, heldout = load(folder, heldout_fraction=0.3, max_images=6)
    assert (len(images), len(heldout)) == (6, 6)
    assert not set(reds(images)) & set(reds(heldout))
    assert reds(images) == sorted(reds(images))
    assert set(reds(heldout)) <= set(reds(load(folder, heldout_fraction=0.3)[1]))
    assert reds(load(folder, seed=1, heldout_fraction=0.3, max_images=6)[0]) != reds(images)
    assert len(load(folder, heldout_fraction=0.3, max_images=1000)[0]) == 21


def test_the_held_out_split_is_found_or_named(tmp_path):
    folder = tmp_path / "set"
    for value, split in enumerate(("train", "validation", "test", "extra")):
        save_parquet(folder, split, image=[flat((value, 0, 0))])
    write_splits(folder, "train", "validation", "test", "extra")
    assert [reds(bank) for bank in load(folder)] == [[0], [2]]
    assert [reds(bank) for bank in load(folder, split="test")] == [[2], [1]]
    assert [reds(bank) for bank in load(folder, split="validation", heldout_split="extra")] == [[1], [3]]
    refuses(load, r"no split 'tran' \(--data.split\); available: .*; did you mean 'train'\?", folder, split="tran")
    with pytest.raises(InputError, match=r"no split 'valid' \(--data.heldout-split\); .*did you mean 'validation'"):
        load(folder, heldout_split="valid")


def test_held_out_images_take_the_size_and_mode_of_the_others(tmp_path):
    save_folder(tmp_path / "set" / "train", [10, 20], size=16)
    save_folder(tmp_path / "set" / "test", [(255, 0, 0)], size=40)
    images, heldout = load(tmp_path / "set")
    assert images.pixels.shape == (2, 1, 16, 16)
    assert heldout.pixels.shape == (1, 1, 16, 16)
    assert reds(heldout) == [76]


def test_an_imagefolder_gives_labels_by_folder_name(tmp_path):
    for value, name in enumerate(("cat", "dog", "emu")):
        save_folder(tmp_path / "set" / name, [(value, 0, 0)] * 4)
    images, heldout = load(tmp_path / "set")
    assert images.label_names == ["cat", "dog", "emu"]
    for bank in (images, heldout):
        assert bank.labels.tolist() == reds(bank)
        assert bank.labels.dtype == torch.int64


def labelled(**columns):
    kinds = {name: ClassLabel(names=["a", "b"]) for name in columns}
    features = Features({"image": datasets.Image(), **kinds})
    return Dataset.from_dict({"image": [flat((0, 0, 0)), flat((1, 0, 0))], **columns}, features)


def test_the_label_column_is_found_named_or_left_out(tmp_path):
    labelled(coarse_label=[0, 0], fine_label=[1, 1]).save_to_disk(tmp_path / "two")
    labelled(kind=[1, 1]).save_to_disk(tmp_path / "one")
    labelled(kind=[1, 1], shape=[0, 0]).save_to_disk(tmp_path / "unclear")
    assert load(tmp_path / "two")[0].labels.tolist() == [1]
    assert load(tmp_path / "two", label_column="coarse_label")[0].labels.tolist() == [0]
    assert load(tmp_path / "two", label_column="none")[0].labels is None
    assert load(tmp_path / "one")[0].labels.tolist() == [1]
    refuses(load, r"several label columns \(kind, shape\); choose one with --data.label", tmp_path / "unclear")
    with pytest.raises(InputError, match=r"no column 'shap' \(--data.label-column\).*did you mean 'shape'"):
        load(tmp_path / "unclear", label_column="shap")


def test_unknown_labels_are_minus_one_and_no_known_label_means_no_labels(tmp_path):
    splits = {"train": labelled(label=[None, 1]), "test": labelled(label=[-1, None])}
    DatasetDict(splits).save_to_disk(tmp_path / "set")
    images, heldout = load(tmp_path / "set")
    assert images.labels.tolist() == [-1, 1]
    assert images.label_names == ["a", "b"]
    assert heldout.labels is heldout.label_names is None


def test_integer_and_text_labels_are_taken_when_named(tmp_path):
    columns = {"image": [flat((i, 0, 0)) for i in range(3)], "kind": [5, 5, 5], "text": ["a", "b", "c"]}
    save_parquet(tmp_path / "set", **columns)
    assert load(tmp_path / "set")[0].labels is None
    images, _ = load(tmp_path / "set", label_column="kind")
    assert images.labels.tolist() == [0, 0]
    assert images.label_names == ["5"]
    assert load(tmp_path / "set", label_column="text")[0].label_names == ["a", "b", "c"]


def test_the_image_column_is_found_or_named(tmp_path):
    pair = {"left": [flat((1, 0, 0))] * 2, "right": [flat((2, 0, 0))] * 2, "text": ["a", "b"]}
    folder = save_parquet(tmp_path / "pair", **pair)
    images, _ = load(folder, image_column="right")
    assert reds(images) == [2]
    assert images.provenance["image_column"] == "right"
    refuses(load, r"several image columns \(left, right\); choose one with --data.image", folder)
    with pytest.raises(InputError, match=r"no column 'rigth' .*available: left, right, text; did you mean 'right'\?"):
        load(folder, image_column="rigth")
    refuses(load, r"the column 'text' \(--data.image-column\) holds no images", folder, image_column="text")
    refuses(load, "has no image column; its columns are text", save_parquet(tmp_path / "texts", text=["a"]))


def save_plain_parquet(folder, rows, split="train"):
    """Writes a parquet file as programs other than `datasets` do, without any word on its features."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"picture": pa.array(rows, STRUCTURE)}), folder / "data" / f"{split}-0.parquet")
    return folder


def test_parquet_files_that_hold_images_as_plain_bytes_are_read(tmp_path):
    rows = [{"bytes": encode(flat((value, 0, 0))), "path": None} for value in (3, 4)]
    images, heldout = load(save_plain_parquet(tmp_path / "plain", rows))
    assert sorted(reds(images) + reds(heldout)) == [3, 4]
    assert images.provenance["image_column"] == "picture"


def test_a_zipped_imagefolder_is_read(tmp_path):
    contents = {f"cats/{value}.png": encode(flat((value, 0, 0))) for value in range(3, 9)} | {"cats/bad.png": b"\0"}
    banks = load(save_as(tmp_path / "set", "zip", contents), on_corrupt="skip", heldout_fraction=0.5)
    assert sorted(sum(map(reds, banks), [])) == [3, 4, 5, 6, 7, 8]
    assert [entry for bank in banks for entry in bank.provenance["skipped"]][0].endswith(
        "(bad.png): " + UNKNOWN_FORMAT
    )


def test_colour_anywhere_makes_all_images_rgb(tmp_path):
    folder = save_folder(tmp_path / "set" / "train", [10, 20, (1, 2, 3), 30]).parent
    save_folder(folder / "test", [9])
    images, heldout = load(folder)
    assert images.pixels[:, :, 0, 0].tolist() == [[10] * 3, [20] * 3, [1, 2, 3], [30] * 3]
    assert heldout.pixels[:, :, 0, 0].tolist() == [[9] * 3]
    assert load(folder, mode="grey")[0].provenance["mode"] == "grey"


def test_images_of_several_sizes_need_an_image_size(tmp_path):
    train = save_folder(tmp_path / "set" / "train", [(0, 0, 0), (1, 0, 0)], size=16)
    flat((2, 0, 0)).resize((20, 16)).save(train / "002.png")
    folder = save_folder(tmp_path / "set" / "test", [(9, 0, 0)]).parent
    refuses(load, r"row 2 \(train/002.png\) is 20x16 pixels; .* pass --data.image-size", folder)
    assert load(folder, image_size=8)[0].pixels.shape == (3, 3, 8, 8)
    flat((1, 0, 0), 24).save(train / "001.png")
    refuses(load, r"differ in size: 16x16 pixels at first, 24x24 at row 1 \(train/001.png\)", folder)


def test_large_images_need_an_image_size(tmp_path):
    folder = save_folder(tmp_path / "set", [(1, 0, 0), (2, 0, 0)], size=65)
    refuses(load, "is 65x65 pixels; only square images of 8 to 64 pixels keep their size", folder)
    assert load(folder, image_size=65)[0].image_size == 65
    assert load(save_folder(tmp_path / "small", [1, 2], size=64))[0].image_size == 64


def test_the_memory_budget_changes_where_pixels_live_and_nothing_else(tmp_path):
    folder = save_folder(tmp_path / "set", [(i, 2 * i, 3 * i) for i in range(10)])
    (images, heldout), (mapped, mapped_heldout) = load(folder), load(folder, memory_budget_gb=0)
    assert torch.equal(images.pixels, mapped.pixels)
    assert torch.equal(heldout.pixels, mapped_heldout.pixels)
    assert images.provenance == mapped.provenance


def http_error(status):
    """What the Hub's client raises when it is answered so."""
    kind = RemoteEntryNotFoundError if status == 404 else HfHubHTTPError
    return kind(f"{status}\nsecond line", response=SimpleNamespace(status_code=status, headers={}, request=None))


def spoil(path):
    path.write_bytes(path.read_bytes()[:40])


def test_a_corrupt_image_is_refused_by_name(tmp_path):
    folder = save_folder(tmp_path / "set" / "train", [(i, 0, 0) for i in range(4)]).parent
    save_folder(folder / "test", [(9, 0, 0)])
    spoil(folder / "train" / "002.png")
    message = r"image at row 2 \(train/002.png\) of the split 'train' .* cannot be decoded \(.*\); .*on-corrupt skip"
    refuses(load, message, folder)


def test_corrupt_images_are_skipped_counted_and_listed_and_labels_stay_aligned(tmp_path):
    folder = tmp_path / "set"
    for value, name in enumerate(("cat", "dog")):
        for split, count in (("train", 10), ("test", 2)):
            save_folder(folder / split / name, [(value, 0, 0)] * count)
    for index in range(3):
        spoil(folder / "train" / "cat" / f"00{index * 2}.png")
        spoil(folder / "train" / "dog" / f"00{index}.png")
    images, heldout = load(folder, on_corrupt="skip")
    assert len(images) == 14
    assert images.labels.tolist() == reds(images) == [0] * 7 + [1] * 7
    assert (images.provenance["num_images"], images.provenance["num_skipped"]) == (14, 6)
    named = [f"row {row} (train/cat/00{row}.png)" for row in (0, 2, 4)]
    named += ["row 10 (train/dog/000.png)", "row 11 (train/dog/001.png)"]
    assert [entry.split(":")[0] for entry in images.provenance["skipped"]] == named
    assert heldout.provenance["num_skipped"] == 0


GOOD = {"bytes": encode(flat((1, 0, 0))), "path": None}


def save_references(folder, *rows):
    """A dataset of one good image and of others, some of which name files."""
    rows = [{"bytes": None, "path": row} if isinstance(row, str) else row for row in rows]
    save_plain_parquet(folder / "set", [GOOD, *rows])
    return save_plain_parquet(folder / "set", [GOOD], "test")


def test_a_missing_file_and_an_empty_row_are_corrupt(tmp_path):
    images, _ = load(save_references(tmp_path, None, str(tmp_path / "set" / "gone.png")), on_corrupt="skip")
    assert reds(images) == [1]
    empty, gone = images.provenance["skipped"]
    assert empty == "row 1: the row holds no image"
    assert gone == "row 2 (gone.png): FileNotFoundError: No such file or directory"


def test_broken_archives_and_what_they_lack_are_corrupt(tmp_path):
    # Hidden files are none of the data.
    folder = tmp_path / "set" / ".archives"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(range(256)) * 20)
    content = bytearray((folder / "whole.zip").read_bytes())
    content[40:80] = bytes(40)
    (folder / "damaged.zip").write_bytes(content)
    (folder / "cut.zip").write_bytes(content[:100])
    names = {"b.png": "whole", "a.png": "damaged", "c.png": "cut"}
    paths = [f"zip://{member}::{folder / archive}.zip" for member, archive in names.items()]
    images, _ = load(save_references(tmp_path, *paths), on_corrupt="skip")
    assert reds(images) == [1] and images.provenance["num_skipped"] == 3
    kinds = [entry.split(": ")[1] for entry in images.provenance["skipped"]]
    assert kinds[0] == "FileNotFoundError" and kinds[2] == "BadZipFile"


def missing(cause=None, kind=FileNotFoundError):
    error = kind("no such file")
    error.__cause__ = cause
    return error


@pytest.fixture
def load_failing(tmp_path, monkeypatch):
    """Loads a dataset of a good image and one whose reading raises an error."""
    # Hidden files are none of the data.
    file = save_folder(tmp_path / "set" / ".files", [0]) / "000.png"

    def load_failing(error):
        def fail(home, place):
            raise error

        monkeypatch.setattr("ssdd_hub.data.row_files._fetch", fail)
        return load(save_references(tmp_path, str(file)), on_corrupt="skip")

    return load_failing


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Server Disconnected"),
        TimeoutError(),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
        http_error(503),
        missing(ConnectionError("what fsspec makes of it")),
        missing(kind=LocalEntryNotFoundError),
    ],
)
def test_a_file_that_cannot_be_reached_is_never_skipped(load_failing, error):
    message = rf"the image at row 1 \(.files/000.png\) cannot be read \({type(error).__name__}: .*\): the same command"
    refuses(load_failing, message, error)


@pytest.mark.parametrize("error", [missing(missing(KeyError("a"))), http_error(404), missing(http_error(404))])
def test_a_file_that_its_source_does_not_have_is_corrupt(load_failing, error):
    images, _ = load_failing(error)
    assert images.provenance["num_skipped"] == 1


def test_nothing_but_corrupt_images_is_an_error_even_when_skipping(tmp_path):
    folder = save_folder(tmp_path / "set", [(1, 0, 0)] * 3)
    for path in folder.iterdir():
        spoil(path)
    message = "none of the 2 images of the split 'train' of .* can be decoded; the first"
    refuses(load, message, folder, on_corrupt="skip")


def test_places_without_a_dataset_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "set").mkdir()
    for name, message in {
        tmp_path / "none": "the folder '.*none' does not exist; --data.name takes",
        tmp_path / "file": "file' is a file; --data.name takes a Hub id or the folder",
        tmp_path / "set": "no images found under --data.name '.*set'",
        "nobody/nothing": "'nobody/nothing' is no local folder, and the Hub cannot be reached",
    }.items():
        refuses(load, message, name)


def test_a_dataset_that_the_hub_does_not_have(monkeypatch):
    def missing(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed.")

    monkeypatch.setattr(datasets, "load_dataset_builder", missing)
    refuses(load, "no images found under --data.name 'a/b': Dataset 'a/b' doesn't exist", "a/b")


def test_a_dataset_that_needs_a_script_or_has_a_broken_card(tmp_path):
    write(tmp_path / "scripted" / "scripted.py", "")
    refuses(load, "'.*scripted' cannot be opened: Dataset scripts are no longer supported", tmp_path / "scripted")
    broken = {"configs: nonsense": "--data.name '.*' cannot be opened: ", "license: [": "'README.md' of .* plain YAML"}
    for index, (card, message) in enumerate(broken.items()):
        refuses(load, message, save_parquet(tmp_path / f"broken{index}", card=card))


def test_a_folder_has_no_revisions(tmp_path):
    message = "is a folder, which has no revisions; leave out --data.revision 'v1'"
    refuses(load, message, save_parquet(tmp_path / "set"), revision="v1")


def test_wrong_columns_are_named_before_a_download(tmp_path, monkeypatch):
    folder = save_parquet(tmp_path / "set", card="dataset_info:\n  features:\n  - name: image\n    dtype: image")
    monkeypatch.setattr(datasets.DatasetBuilder, "download_and_prepare", lambda self: pytest.fail("downloaded"))
    refuses(load, "no column 'img'", folder, image_column="img")
    refuses(load, "no split 'test'", folder, heldout_split="test")


def test_a_configuration_that_does_not_exist_or_is_not_chosen(tmp_path):
    folder = save_parquet(save_parquet(tmp_path / "set", "small"), "large", rows=8)
    write_card(folder, [{"config_name": name, "data_files": f"data/{name}-*"} for name in ("small", "large")])
    assert len(load(folder, config="large", heldout_fraction=0.5)[0]) == 4
    refuses(load, "no configuration 'smal'; available: small, large; did you mean 'small'?", folder, config="smal")
    refuses(load, "several configurations; pass --data.config; available: small, large", folder)


def test_an_empty_split(tmp_path):
    none = Dataset.from_dict({"image": []}, Features({"image": datasets.Image()}))
    folder = save_parquet(save_parquet(tmp_path / "set"), "extra")
    write_splits(folder, "train", "test", "extra")
    none.to_parquet(folder / "data" / "test-0.parquet")
    assert len(load(folder, heldout_split="extra")[0]) == 4
    refuses(load, r"the split 'test' \(--data.heldout-split\) of the dataset '.*' holds no im", folder)
    none.save_to_disk(tmp_path / "saved")
    refuses(load, "the dataset '.*saved' holds no images in one of its splits", tmp_path / "saved")


def test_a_broken_file(tmp_path):
    folder = save_parquet(tmp_path / "broken")
    (folder / "data" / "train-0.parquet").write_bytes(b"PAR1 and nothing else")
    refuses(load, "the dataset '.*broken' cannot be read: ", folder)


def test_all_wrong_settings_are_reported_together():
    wrong = {"name": "", "heldout_fraction": 1.0, "image_size": 7, "mode": "gray", "max_images": 0}
    wrong |= {"on_corrupt": "ignore", "memory_budget_gb": float("nan"), "heldout_split": "train"}
    with pytest.raises(SettingsError) as caught:
        DataSettings(**wrong)
    assert [problem.split()[0] for problem in caught.value.problems] == [DataSettings.option(name) for name in wrong]


@pytest.mark.parametrize(
    "option", [{"config": "x"}, {"revision": "x"}, {"image_column": "x"}, {"label_column": "x"}], ids=str
)
def test_digits_refuse_what_they_would_ignore(option):
    with pytest.raises(SettingsError, match="digits take none of --data.config"):
        DataSettings(**option)


@pytest.mark.parametrize(
    ("card", "licence"),
    [("license: mit", "mit"), ("license:\n- mit\n- cc0-1.0", "mit, cc0-1.0"), ("pretty_name: x", "unknown")]
    + [(f"license: {value}", "unknown") for value in ("{name: mit}", "[mit, {name: mit}]", "3", "[]", "null")],
)
def test_the_licence_is_that_of_the_card(tmp_path, card, licence):
    images, heldout = load(save_parquet(tmp_path / "set", card=card))
    assert images.provenance["license"] == heldout.provenance["license"] == licence


def test_the_source_says_where_the_images_come_from(tmp_path):
    folder = save_parquet(tmp_path / "set", rows=10)
    images, _ = load(folder)
    fingerprint = images.provenance.pop("fingerprint")
    assert fingerprint == fingerprint_pixels(images.pixels, chunk=2)
    facts = {"name": str(folder), "config": "default", "revision": None, "image_column": "image", "split": "train"}
    facts |= {"license": "unknown", "selection": "all but 0.1 held out by seed 0", "image_size": 8, "mode": "rgb"}
    assert images.provenance == facts | {"num_images": 9, "num_skipped": 0, "skipped": []}


def test_the_commit_of_a_hub_dataset_is_its_revision(tmp_path, monkeypatch):
    folder, commit = save_parquet(tmp_path / "set"), "0123456789abcdef" * 2 + "01234567"
    find = datasets.load_dataset_builder

    def on_hub(name, *args, **kwargs):
        builder = find(str(folder))
        builder.download_and_prepare()
        builder.config.data_files = {"train": [f"hf://datasets/{name}@{commit}/data/train-0.parquet"]}
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", on_hub)
    images, _ = load("somebody/something", revision="v1")
    assert images.provenance["revision"] == commit
    assert images.provenance["license"] == "unknown"


def test_a_fingerprint_depends_on_every_pixel_and_on_the_shape():
    pixels = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    changed = pixels.clone()
    changed[4, 0, 7, 7] = 1
    prints = {fingerprint_pixels(image) for image in (pixels, changed, pixels.view(5, 1, 4, 16))}
    assert len(prints) == 3
    assert fingerprint_pixels(pixels, chunk=2) == fingerprint_pixels(pixels)


def test_a_subset_keeps_the_order_of_its_indices_and_its_own_fingerprint():
    pixels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    bank = ImageBank(pixels, torch.tensor([0, 1, 0, 1]), ["a", "b"], {"num_images": 4, "fingerprint": "x"})
    part = bank.subset([3, 0])
    assert reds(part) == [3, 0]
    assert part.labels.tolist() == [1, 0]
    assert part.provenance == {"num_images": 2, "fingerprint": fingerprint_pixels(pixels[[3, 0]])}
    assert part.fingerprint != bank.fingerprint == "x"


@pytest.mark.parametrize(
    ("name", "shapes", "num_classes", "first"),
    [("cifar100-mini", (2000, 500), 100, "img"), ("caltech101-32", (2773, 1949), 101, "image")],
)
def test_real_datasets_load_as_pillow_decodes_them(name, shapes, num_classes, first):
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs {name} beside the repository")
    images, heldout = load(SHARED / name)
    assert images.pixels.shape == (shapes[0], 3, 32, 32)
    assert heldout.pixels.shape == (shapes[1], 3, 32, 32)
    assert len(images.label_names) == num_classes
    assert images.labels.unique().numel() == num_classes
    table = datasets.load_dataset(str(SHARED / name), split="test")
    for row in (0, 7, len(table) - 1):
        reference = np.asarray(table[row][first].convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(heldout.pixels[row].numpy(), reference)


def test_importing_the_module_does_not_import_what_only_some_datasets_need():
    # An empty package stands in for `ssdd_hub/__init__.py`, which imports more than this module.
    folder = str(Path(images_module.__file__).parents[1])
    package = f"package = types.ModuleType('ssdd_hub'); package.__path__ = [{folder!r}]"
    code = f"import sys, types; {package}; sys.modules['ssdd_hub'] = package; import ssdd_hub.data.bank"
    code += "; print({'datasets', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
