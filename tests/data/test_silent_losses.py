"""Classes, splits and images that `datasets` loses without a word are refused by name; what is found is told."""

import gc
import gzip
import zipfile

import numpy as np
import pytest
from data_folders import (
    banks_of,
    encode,
    flat,
    load,
    picture,
    pictures,
    refused,
    refuses,
    save_as,
    stream,
    write,
    write_card,
)

# `datasets` leaves the files of metadata open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file")


@pytest.fixture(autouse=True)
def closed():
    """Closes these files here, and not in the middle of another test."""
    yield
    gc.collect()


def classes(folder, names=("cat", "dog"), each=3, ending="png"):
    """Class folders of images with the values from 0 on."""
    for index, name in enumerate(names):
        for value in range(each):
            write(folder / name / f"{value}.{ending}", picture(index * each + value))
    return folder


def zipped(file, names):
    with zipfile.ZipFile(file, "w") as archive:
        for value, name in enumerate(names):
            archive.writestr(name, name if name.endswith(("txt", "csv")) else picture(value))


# Classes


@pytest.mark.parametrize(
    ("place", "odd"),
    [("", "cover.png"), ("", "dog/more/9.png"), ("train", "train/cover.png"), ("train", "test/cat/more/9.png")],
)
def test_an_image_beside_class_folders_does_not_take_their_classes_away(tmp_path, place, odd):
    folder = classes(tmp_path / "set" / place) if place else classes(tmp_path / "set")
    folder = tmp_path / "set"
    write(folder / odd, picture(9))
    beside = odd.rpartition("/")[0] or "."
    refuses(load, rf"in several folders \('{beside}' with 1, .*--data.label-column none", folder)
    # No classes are asked for.
    expected = [0, 1, 2, 3, 4, 5] if odd.startswith("test") else [0, 1, 2, 3, 4, 5, 9]
    assert stream(folder) == expected and load(folder, label_column="none") == [0, 1, 2, 3, 4, 5, 9]
    (folder / odd).unlink()
    assert banks_of(folder)[0].label_names == ["cat", "dog"]


def test_class_folders_with_one_more_folder_each_are_refused(tmp_path):
    refuses(load, r"'dog/images' with 3, 'cat/images' with 3", classes(tmp_path / "set", ["cat/images", "dog/images"]))
    assert banks_of(classes(tmp_path / "both", ["pet/cat", "pet/dog", "car/van"]))[0].label_names == [
        *("cat", "dog", "van")
    ]


def test_class_folders_in_a_repository_are_not_lost_either(hub_set, tmp_path):
    folder = classes(tmp_path / "set")
    write(folder / "cover.png", picture(9))
    hub_set(folder)
    refuses(load, r"'ann/set' lie in several folders \('.' with 1", "ann/set")


# Splits


@pytest.mark.parametrize(
    "names", [("Train", "Test"), ("TRAIN", "VAL"), ("Training", "Testing"), ("data/Train", "data/Valid")]
)
def test_splits_in_capital_letters_are_not_mixed(tmp_path, names):
    folder = tmp_path / "set"
    for name in names:
        classes(folder / name)
    shown = sorted(repr(name.rpartition("/")[2]) for name in names)
    refused(folder, f"{' and '.join(shown)} of '.*' are called like splits, which must be in lower-case letters")
    write_card(folder, [{"config_name": "default", "data_files": "**/*.png"}])
    assert load(folder) == sorted([*range(6)] * 2)


def test_a_table_of_a_split_in_capital_letters_is_not_left_out(tmp_path):
    (tmp_path / "set").mkdir()
    for name in ("train", "Test"):
        write(tmp_path / "set" / f"{name}.csv", "a,b\n1,2\n")
    refused(tmp_path / "set", "'Test.csv' and 'train.csv' of")


@pytest.mark.parametrize("name", ["train/test", "test/train", "val/training"])
def test_no_file_is_in_two_splits(tmp_path, name):
    folder = classes(tmp_path / "set", ["train", "test" if "test" in name else "val"])
    write(folder / name / "9.png", picture(9))
    refuses(load, f"1 files of .*, such as '{name}/9.png', are in both splits 'train' and", folder)


def test_no_file_is_in_two_splits_by_a_card(tmp_path):
    folder = classes(tmp_path / "set")
    files = [{"split": "train", "path": "*/*.png"}, {"split": "test", "path": "dog/*"}]
    write_card(folder, [{"config_name": "default", "data_files": files}])
    refuses(load, "3 files of .*, such as 'dog/0.png', are in both splits", folder)


# Images that are left out


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cat/photo", "its name does not end like one that is read: rename it"),
        ("cat/0.png_original", "its name does not end like one that is read: rename it"),
        ("cat/x.Png", ".Png is read in lower-case or capital letters only: rename it"),
        ("__cat/x.png", "folders that begin with __ are not read: rename it"),
        ("cat/x.CR2", ".cr2 files are not read from folders: convert it to PNG"),
        ("cat/x.svg", ".svg files are not read from folders: convert it to PNG"),
        ("Metadata.csv", "metadata is read from metadata.csv, metadata.jsonl, metadata.parquet in the folder of each"),
    ],
)
def test_the_reason_why_a_file_is_left_out_is_told(tmp_path, name, reason):
    folder = classes(tmp_path / "set")
    write(folder / name, picture(9))
    refused(folder, rf"1 files of .* would be left out: {name} \(.*{reason}.*pass --data.on-corrupt skip")
    bank, heldout = banks_of(folder, on_corrupt="skip")
    assert len(bank) + len(heldout) == 6 and bank.provenance["num_skipped"] == 1
    assert bank.label_names == ["cat", "dog"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000"])
def test_images_are_known_by_their_content(tmp_path, kind):
    write(tmp_path / "set" / "0", encode(flat((1, 2, 3), 16), kind))
    refused(tmp_path / "set", r"no images found .*: 0 \(an image, and its name does not end like one that is read")


def test_other_files_are_no_images(tmp_path):
    folder = classes(tmp_path / "set")
    np.save(folder / "cat" / "0.npy", np.zeros(3))
    for name, content in {
        "LICENSE": "MIT",
        "Thumbs.db": b"\xd0\xcf\x11\xe0",
        "coco.json": "{}",
        "x.pdf": b"%PDF",
    }.items():
        write(folder / name, content)
    assert load(folder) == stream(folder) == [*range(6)]


def test_metadata_above_the_folders_of_splits_is_not_left_out(tmp_path):
    for name in ("train", "test"):
        pictures_of = tmp_path / "set" / name
        pictures_of.mkdir(parents=True)
        pictures(pictures_of)
    rows = [f"{name}/{value}.png,a\n" for name in ("train", "test") for value in range(3)]
    write(tmp_path / "set" / "metadata.csv", "file_name,kind\n" + "".join(rows))
    refused(tmp_path / "set", r"left out: metadata.csv \(metadata is read from .* in the folder of each split")


def test_images_in_archives_that_no_metadata_lists_are_named(tmp_path):
    inside, beside = tmp_path / "inside", pictures(tmp_path / "beside")
    inside.mkdir()
    zipped(inside / "all.zip", ["0.png", "1.png", "2.png", "3.png", "notes.txt", "__MACOSX/._0.png"])
    rows = "file_name,kind\n" + "".join(f"{value}.png,a\n" for value in range(3))
    with zipfile.ZipFile(inside / "all.zip", "a") as archive:
        archive.writestr("metadata.csv", rows)
    refused(inside, r"1 files of .* left out: all.zip/3.png \(no file of metadata lists it\)")
    assert load(inside, on_corrupt="skip") == [0, 1, 2]
    write(beside / "metadata.csv", rows)
    zipped(beside / "more.zip", ["a.png", "b.png"])
    refused(beside, r"2 files of .* left out: more.zip/a.png .no file of metadata lists it., more.zip/b.png")


def test_hidden_files_in_archives_are_no_class_folders(tmp_path):
    (tmp_path / "set").mkdir()
    zipped(tmp_path / "set" / "all.zip", ["photos/0.png", "photos/1.png", "__MACOSX/photos/._0.png"])
    assert load(tmp_path / "set") == stream(tmp_path / "set") == [0, 1]


# What is found is told


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("0.npy", b"\x93NUMPY", r"its files are 1 of .npy; it must hold image files, or tables .*PIL.Image.fromarray"),
        ("data_batch_1", b"\x80\x02", "its files are 1 of no ending; it must hold"),
        (".hidden.png", picture(0), "it holds no files; it must hold"),
    ],
)
def test_a_folder_without_images_tells_what_it_holds(tmp_path, name, content, message):
    write(tmp_path / "set" / name, content)
    refused(tmp_path / "set", f"no images found under --data.name '.*': {message}")


def test_a_card_that_names_no_file_is_told(tmp_path):
    folder = pictures(tmp_path / "set")
    write_card(folder, [{"config_name": "default", "data_files": "photos/*"}])
    refused(folder, "its card names 'photos/\\*' as data, and no file is called so: correct it")


@pytest.mark.parametrize("ending", ["xml", "pdf"])
def test_images_beside_more_files_of_a_refused_format_are_told(tmp_path, ending):
    folder = classes(tmp_path / "set")
    for number in range(9):
        write(folder / "notes" / f"{number}.{ending}", "<a/>")
    refused(folder, "The 6 image files of '.*', such as cat/0.png, are not read, .*: move those out of the folder")


def test_a_table_of_paths_is_to_become_metadata(tmp_path):
    folder = tmp_path / "set"
    classes(folder / "images")
    write(folder / "train.csv", "path,label\nimages/cat/0.png,a\n")
    refused(folder, "if they list the images, call them metadata.csv and the column of the images' names file_name")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("file_name;kind\n0.png;a\n", "file_name is that of the images' names"),
        ("image,kind\n0.png,a\n", "file_name is that of the images' names"),
        ("file_name,kind\n", "a file of metadata, a table or an archive has no rows"),
    ],
)
def test_metadata_that_cannot_be_read_tells_what_it_must_be(tmp_path, rows, message):
    folder = pictures(tmp_path / "set")
    write(folder / "metadata.csv", rows)
    refused(folder, f"cannot be read: .*{message}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a pointer of Git LFS .*: fetch it with git lfs",
        ),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>", r"text \(HTML, XML or SVG\), which is not accepted"),
        (b'{"error": "not found"}', 'text that begins with \'{"error": "not found"}\', which is not accepted'),
        (b"", "it is empty"),
    ],
)
def test_what_is_in_place_of_an_image_is_told(tmp_path, content, reason):
    folder = pictures(tmp_path / "set")
    write(folder / "9.png", content)
    refuses(
        load, rf"row 3 \(9.png\) of the split 'train' .* cannot be decoded \({reason}", folder, heldout_fraction=0.1
    )


# Parts of files


def damage(content, kind):
    """Returns a tar file of 6 small images, of which each has a header and a block of data, with one fault."""
    second = 2 * 1024
    return {
        "a header": content[:second] + b"\xff" * 512 + content[second + 512 :],
        "cut after a member": content[:second],
        "cut in a header": content[: second + 256],
        "cut in data": content[: second + 600],
        "joined": content + content,
    }[kind]


@pytest.mark.parametrize("kind", ["a header", "cut after a member", "cut in a header", "cut in data", "joined"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_file_that_is_damaged_is_refused_and_not_read_in_part(tmp_path, kind, packed):
    whole = save_as(tmp_path / "set", "tar", {f"{index}.png": picture(index) for index in range(6)})
    assert load(whole, label_column="none") == stream(whole) == [*range(6)]
    file = whole / "images.tar"
    content = damage(file.read_bytes(), kind)
    file.unlink()
    write(whole / ("images.tar.gz" if packed else "images.tar"), gzip.compress(content) if packed else content)
    told = r"the archive 'images.tar(.gz)?' of '.*set' cannot be read \(.*\): write it or fetch it again"
    for read in (load, stream):
        refuses(read, told, whole)
        refuses(read, told, whole, label_column="none")


def test_tar_files_with_one_block_or_many_at_their_end_are_whole(tmp_path):
    folder = save_as(tmp_path / "set", "tar", {f"{index}.png": picture(index) for index in range(3)})
    content = (folder / "images.tar").read_bytes().rstrip(b"\0")
    content += bytes(-len(content) % 512)
    for blocks in (1, 2, 100):
        write(folder / "images.tar", content + bytes(512 * blocks))
        assert stream(folder) == [0, 1, 2]


def test_files_that_are_called_parts_of_a_whole_are_all_there(tmp_path):
    folder = tmp_path / "set"
    for number in range(3):
        save_as(folder, "parquet", {f"{number}.png": picture(number)})
        (folder / "train.parquet").rename(folder / f"train-{number:05}-of-00003.parquet")
    assert load(folder) == stream(folder) == [0, 1, 2]
    moved = (folder / "train-00001-of-00003.parquet").rename(tmp_path / "elsewhere")
    refused(folder, "1 of 3 files of '.*set' are missing: 'train-00001-of-00003.parquet'; fetch them")
    write_card(folder, [{"config_name": "default", "data_files": "train-*.parquet"}])
    refused(folder, "1 of 3 files of '.*set' are missing: 'train-00001-of-00003.parquet'; fetch them")
    here = [path.name for path in sorted(folder.glob("*.parquet"))]
    write_card(folder, [{"config_name": "default", "data_files": here}])
    assert load(folder) == [0, 2]
    (folder / "README.md").unlink()
    # As some count.
    moved.rename(folder / "train-00003-of-00003.parquet")
    (folder / "train-00000-of-00003.parquet").rename(folder / "train-00001-of-00003.parquet")
    assert sorted(load(folder)) == [0, 1, 2]
