"""Images that `datasets` would leave out of a folder or repository are named, read as a stream or not."""

import gc
import os
import tarfile
import zipfile

import pytest
from data_folders import flat, load, picture, pictures, refused, refuses, stream, stream_of, write, write_card

from ssdd_hub.data.literal_folder import listed

# `datasets` leaves the files of metadata open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file")


@pytest.fixture(autouse=True)
def closed():
    """Closes these files here, and not in the middle of another test."""
    yield
    gc.collect()


def classes(folder, names=("cat", "dog"), each=3):
    """Class folders of images with the values from 0 on."""
    for index, name in enumerate(names):
        for value in range(each):
            write(folder / name / f"{value}.png", picture(index * each + value))
    return folder


def named(name, reason):
    return rf"would be left out: {name} \({reason}.*\); change or remove them, or pass --data.on-corrupt skip"


def test_a_stream_names_and_lists_what_is_left_out_too(tmp_path):
    folder = classes(tmp_path / "set")
    flat(9).save(folder / "dog" / "x.avif")
    refused(folder, named("dog/x.avif", ".avif files are not read from folders: convert it"))
    assert load(folder, on_corrupt="skip") == stream(folder, on_corrupt="skip") == [*range(6)]
    listing = stream_of(folder, on_corrupt="skip").provenance["left_out"]
    assert listing == ["dog/x.avif (.avif files are not read from folders: convert it to PNG)"]
    (folder / "dog" / "x.avif").unlink()
    assert "left_out" not in stream_of(folder).provenance


@pytest.mark.parametrize("brackets", ["set", "set[1]"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_that_no_metadata_lists_are_named(tmp_path, split, brackets):
    folder = classes(tmp_path / brackets, ["train", "test"])
    write(folder / split / "metadata.csv", "file_name,kind\n0.png,a\n1.png,a\n")
    # `datasets` takes no image of a later split without metadata, and all of an earlier one.
    names = ["train/2.png"] if split == "train" else []
    names += ["test/2.png"] if split == "test" else [f"test/{number}.png" for number in range(3)]
    texts = [rf"{name} \(no file of metadata lists it\)" for name in sorted(names)]
    refused(folder, f"{len(names)} files of .* left out: {', '.join(texts)}; change")


@pytest.mark.parametrize("name", ["test", "val", "dev-board", "eval"])
def test_a_class_that_is_called_like_a_split_does_not_hide_the_others(tmp_path, name):
    refused(classes(tmp_path / "set", ["cat", name]), "3 files of .*cat/0.png .in none of the splits")
    folder = classes(tmp_path / "files")
    (folder / "dog" / "0.png").rename(folder / "dog" / f"{name} 1.png")
    refused(folder, "5 files of .*cat/0.png .in none of the splits")


def test_what_a_card_leaves_out_and_what_is_hidden_is_left_out_on_purpose(tmp_path):
    folder = classes(tmp_path / "set")
    write_card(folder, [{"config_name": "default", "data_files": "cat/*.png"}])
    for name in (".thumbnails/0.png", "__MACOSX/cat/._0.png", "._0.png"):
        write(folder / name, picture(9))
    assert load(folder) == stream(folder) == [0, 1, 2]
    (folder / "README.md").unlink()
    assert load(folder) == [*range(6)]


def test_a_folder_without_a_single_image_says_what_it_holds(tmp_path):
    flat(9).save(write(tmp_path / "avif" / "x.avif", b""))
    refused(tmp_path / "avif", "no images found .*: x.avif .*convert it to PNG")
    write(tmp_path / "rar" / "x.rar", b"Rar!")
    refused(tmp_path / "rar", "no images found .*: x.rar .an archive, which is not read: unpack it")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "cat").symlink_to(classes(tmp_path / "elsewhere") / "cat")
    refused(tmp_path / "links", "the folder 'cat' of '.*links' is not entered: the link .*--data.follow-links true")
    assert load(tmp_path / "links", follow_links=True) == stream(tmp_path / "links", follow_links=True) == [0, 1, 2]


def test_images_beside_more_texts_are_named(tmp_path):
    folder = classes(tmp_path / "set")
    for number in range(7):
        write(folder / "labels" / f"{number}.txt", "0 0.5 0.5 1 1")
    refused(folder, "The 6 image files of '.*', such as cat/0.png, are not read, as more .* format 'text'")


def test_a_tar_file_of_class_folders_is_to_be_unpacked_unless_no_labels_are_wanted(tmp_path):
    folder = classes(tmp_path / "set")
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "x.tar", "w") as archive:
        for name in ("cat", "dog"):
            archive.add(folder / name, name)
    refuses(load, "the archive 'x.tar' of '.*' holds class folders, .*: unpack it into the folder", tmp_path / "tar")
    assert load(tmp_path / "tar", label_column="none") == stream(tmp_path / "tar") == [*range(6)]


def test_linked_folders_are_read_in_their_place_and_each_circle_ends(tmp_path):
    folder, elsewhere = classes(tmp_path / "set", ["cat"]), classes(tmp_path / "elsewhere", ["x", "dog"])
    (folder / "dog").symlink_to(elsewhere / "dog")
    (elsewhere / "dog" / "back").symlink_to(folder)
    (folder / "same").symlink_to("cat")
    expected = [f"{place}/{number}.png" for place in ("cat", "dog", "same") for number in range(3)]
    assert listed(folder, True) == sorted([*expected, "dog/back"])
    assert load(folder, follow_links=True) == [0, 0, 1, 1, 2, 2, 3, 4, 5]
    assert load(folder, follow_links=True) == stream(folder, follow_links=True)
    refused(folder, "the folder 'dog' of '.*set' is not entered: the link 'dog' leads to '.*elsewhere/dog'")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    folder, scandir = classes(tmp_path / "set"), os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert listed(folder) == [*(f"cat/{number}.png" for number in range(3)), "dog"]
    refused(folder, named("dog", "a folder that cannot be listed"))


@pytest.mark.parametrize("where", ["folder", "repository"])
def test_class_folders_that_only_one_split_has_are_named(hub_set, tmp_path, where):
    folder = classes(tmp_path / "set" / "train")
    write(tmp_path / "set" / "test" / "owl" / "0.png", picture(9))
    if where == "repository":
        hub_set(folder.parent)
    message = "'test' holds images of classes that 'train' does not have .'owl'; it has 'cat', 'dog'."
    refuses(load, message, "ann/set" if where == "repository" else folder.parent)


def test_archives_of_class_folders_in_a_repository_are_to_be_unpacked(hub_set, tmp_path):
    folder = classes(tmp_path / "set")
    (tmp_path / "zip").mkdir()
    with zipfile.ZipFile(tmp_path / "zip" / "x.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    hub_set(tmp_path / "zip")
    refuses(load, "Invalid string class label .*class folders in archives must be unpacked", "ann/set")


def test_images_that_are_left_out_of_a_repository_are_named(hub_set, tmp_path):
    folder = classes(tmp_path / "set")
    write(folder / "metadata.csv", "file_name,kind\n" + "".join(f"cat/{number}.png,a\n" for number in range(3)))
    flat(9).save(folder / "dog" / "x.avif")
    hub_set(folder)
    refused("ann/set", r"4 files of 'ann/set' .*: dog/0.png \(no file of metadata lists it\)")
    assert load("ann/set", on_corrupt="skip") == stream("ann/set", on_corrupt="skip") == [0, 1, 2]


def test_a_repository_of_which_nothing_is_left_out_is_read(hub_set, tmp_path):
    hub_set(pictures(tmp_path / "set"))
    assert load("ann/set") == stream("ann/set") == [0, 1, 2]
