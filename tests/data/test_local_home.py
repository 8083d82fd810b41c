"""Nothing outside of a dataset is opened or fetched, whatever its card, its tables and its indexes name."""

import base64
import gc
import json
import os
import re
import zipfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_folders import (
    IMAGE_CARD,
    STRUCTURE,
    load,
    picture,
    pictures,
    refused,
    refuses,
    save_folder,
    stream,
    write,
    write_card,
)
from datasets import Dataset, DatasetDict

from ssdd_hub.data.dataset_home import HubHome, Place
from ssdd_hub.data.local_home import LocalHome

# `datasets` leaves the files of metadata open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file")


def save_rows(folder, *paths, layout="parquet"):
    """A dataset of two good images and of rows that name files."""
    if layout == "parquet":
        rows = [{"bytes": picture(value), "path": None} for value in (1, 2)]
        rows += [{"bytes": None, "path": path} for path in paths]
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": pa.array(rows, STRUCTURE)}), folder / "train.parquet")
        return folder
    files = [str(write(folder / "files" / f"{value}.bin", picture(value))) for value in (1, 2)]
    if layout == "jsonl":
        text = "".join(json.dumps({"image": path}) + "\n" for path in [*files, *paths])
    else:
        text = "image\n" + "".join(f'"{path}"\n' for path in [*files, *paths])
    write(folder / f"train.{layout}", text)
    write(folder / "README.md", IMAGE_CARD)
    return folder


OUTSIDE = [
    *("/etc/passwd", "../private.png", "files/../../private.png", "/dev/zero", "/proc/self/environ"),
    *("{tmp}/private.png", "{tmp}/set/../private.png", "{tmp}/set2/private.png", "{tmp}/set"),
    *("http://{host}/x.png", "hf://datasets/a/b/x.png", "memory://x.png", "simplecache::http://{host}/x.png"),
    *("file://{tmp}/private.png", "file://{tmp}/set/files/1.bin", "local://{tmp}/private.png"),
    *("zip://x.png::http://{host}/x.zip", "zip://x.png::{tmp}/private.zip", "zip://x.png::../private.zip"),
    *("zip://x.png::file://{tmp}/set/x.zip", "zip://x.png", "filecache::{tmp}/private.png"),
]


@pytest.mark.parametrize("layout", ["parquet", "jsonl", "csv"])
def test_a_row_that_names_something_else_is_refused_unread(tmp_path, server, layout, monkeypatch):
    url, asked = server
    write(tmp_path / "private.png", picture(7))
    write(tmp_path / "set2" / "private.png", picture(7))
    with zipfile.ZipFile(tmp_path / "private.zip", "w") as archive:
        archive.writestr("x.png", picture(7))
    monkeypatch.chdir(tmp_path)
    for index, outside in enumerate(OUTSIDE):
        folder = tmp_path / "set"
        path = outside.format(tmp=tmp_path, host=url.removeprefix("http://"))
        save_rows(folder, path, layout=layout)
        os.utime(folder / f"train.{layout}", (index, index))
        required = f"all its files must lie in the folder '{folder}'; move them there, or correct what names them"
        message = re.escape(f" has the path {path!r}: {required}")
        refused(folder, rf"^the image at row 2 \(.*{message}$", on_corrupt="skip")
    assert asked == []


def test_rows_may_name_what_lies_in_the_folder(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    write(folder / "files" / "a.bin", picture(3))
    write(folder / "files" / "b.bin", picture(4))
    (folder / "files" / "link.bin").symlink_to(folder / "files" / "b.bin")
    with zipfile.ZipFile(folder / "files" / "x.zip", "w") as archive:
        for value, name in ((5, "in/a.png"), (6, "a*b.png"), (7, "a::b.png"), (8, "axb.png")):
            archive.writestr(name, picture(value))
    (folder / "files" / "x.zip").rename(folder / "files" / "x.bin")
    archive = folder / "files" / "x.bin"
    paths = [str(folder / "files" / "a.bin"), "files/link.bin", f"{folder}/files/../files/a.bin"]
    paths += [f"zip://{name}::{archive}" for name in ("in/a.png", "a*b.png", "a::b.png")]
    save_rows(folder, *paths)
    assert load(folder) == stream(folder) == [1, 2, 3, 3, 4, 5, 6, 7]
    monkeypatch.chdir(tmp_path)
    save_rows(folder, "set/files/a.bin")
    assert load(folder) == [1, 2, 3]
    (tmp_path / "linked").symlink_to(folder)
    save_rows(folder, f"{folder}/files/a.bin", f"{tmp_path}/linked/files/a.bin")
    assert load("linked") == stream("linked") == [1, 2, 3, 3]


def test_pipes_and_devices_are_not_opened(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    os.mkfifo(folder / "pipe.bin")
    (folder / "zero.bin").symlink_to("/dev/zero")
    message = r"the image at row 2 \(.*\) must be a regular file, and '.*' is none"
    for path in (f"{folder}/pipe.bin", f"{folder}/zero.bin", f"zip://x::{folder}/pipe.bin"):
        save_rows(folder, path)
        refused(folder, message, on_corrupt="skip", follow_links=True)


@pytest.mark.parametrize("name", ["README.md", "dataset_infos.json", "images.zip", "x.png", "metadata.csv"])
def test_pipes_beside_the_data_do_not_hang(tmp_path, name):
    folder = tmp_path / "run[12]"
    pictures(folder)
    os.mkfifo(folder / name)
    assert load(folder) == stream(folder) == [0, 1, 2]


def test_a_pipe_that_would_be_read_is_refused(tmp_path):
    write(tmp_path / "set" / "a.png", picture(1))
    os.mkfifo(tmp_path / "set" / ".huggingface.yaml")
    refuses(load, "'.huggingface.yaml' of '.*' must be a regular file", tmp_path / "set")


PATTERNS = [
    *("../other/*.png", "data/../../other/*.png", "/etc/*", "{tmp}/other/0.png", "file://{tmp}/other/*.png"),
    *("{url}/x.png", "https://example.com/x.zip", "zip://*.png::{url}/x.zip", "hf://datasets/a/b/*.png"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("form", ["text", "list", "splits", "yaml", "second", "mapping"])
def test_a_card_that_names_data_elsewhere_is_refused_before_it_is_looked_for(tmp_path, server, form, pattern):
    url, asked = server
    pattern = pattern.format(tmp=tmp_path, url=url)
    for name in ("other", "set"):
        pictures(tmp_path / name)
    files = {
        "text": pattern,
        "list": ["*.png", pattern],
        "splits": [{"split": "train", "path": ["*.png", pattern]}],
        "mapping": {"train": pattern},
    }
    configs = [{"config_name": "other", "data_files": "*.png"}] * (form == "second")
    configs.append({"config_name": "default", "data_files": files.get(form, pattern)})
    write_card(tmp_path / "set", configs, ".huggingface.yaml" if form == "yaml" else "README.md")
    message = r"the card of '.*set' names '.*' as data: all its files must lie in the folder '.*set'; move them"
    refused(tmp_path / "set", message)
    assert asked == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        *(({"data_dir": place}, "names '.*' as data") for place in ("../other", "/etc", "https://example.com", "..")),
        ({"config_name": "..", "data_files": "*.png"}, "calls a configuration '..': give it another name"),
    ],
)
def test_a_card_that_names_a_folder_elsewhere_is_refused(tmp_path, config, message):
    write(tmp_path / "other" / "a.png", picture(1))
    write(tmp_path / "set" / "a.png", picture(1))
    write_card(tmp_path / "set", [{"config_name": "default", **config}])
    refuses(load, f"the card of '.*' {message}", tmp_path / "set")


def test_a_card_may_name_what_lies_in_the_folder(tmp_path):
    folder = tmp_path / "set"
    save_folder(folder, [(10, 0, 0)])
    pictures(folder / "some")
    patterns = [{"data_files": pattern} for pattern in ("some/*.png", f"{folder}/some/*", "./some/../some/*.png")]
    for named in (*patterns, {"data_dir": "some"}):
        write_card(folder, [{"config_name": "default", **named}])
        assert load(folder) == stream(folder) == [0, 1, 2]


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/x.png"])
@pytest.mark.parametrize("layout", ["metadata.csv", "metadata.jsonl"])
def test_an_index_of_images_that_names_files_elsewhere_is_refused(tmp_path, layout, name):
    write(tmp_path / "x.png", picture(9))
    pictures(tmp_path / "set")
    names = ["0.png", "1.png", name]
    csv = "file_name\n" + "".join(f"{each}\n" for each in names)
    lines = "".join(json.dumps({"file_name": each}) + "\n" for each in names)
    write(tmp_path / "set" / layout, csv if layout.endswith("csv") else lines)
    refused(tmp_path / "set", "cannot be read: .*file_name|must lie in the folder", on_corrupt="skip")
    # `datasets` leaves the index open, and it is closed here and not in the middle of another test.
    gc.collect()


@pytest.mark.parametrize("name", ["../other", "/etc", "..", "a/b", "a::b"])
def test_a_saved_dataset_whose_parts_lie_elsewhere_is_refused(tmp_path, name):
    table = Dataset.from_dict({"image": [{"bytes": picture(1), "path": None}] * 3})
    DatasetDict({"train": table}).save_to_disk(tmp_path / "set")
    table.save_to_disk(tmp_path / "other")
    index = tmp_path / "set" / "train" / "state.json"
    content = json.loads(index.read_text())
    content["_data_files"] = [{"filename": f"{name}/data.arrow"}]
    index.write_text(json.dumps(content))
    refuses(load, "'state.json' of '.*' names '.*' as a part: all its files must lie in", tmp_path / "set")
    write(tmp_path / "set" / "dataset_dict.json", json.dumps({"splits": [name]}))
    refuses(stream, "'dataset_dict.json' of '.*' names '.*' as a part", tmp_path / "set")


def test_a_data_url_is_the_image_itself(tmp_path):
    text = base64.b64encode(picture(5)).decode()
    folder = save_rows(tmp_path / "set", f"data:image/png;base64,{text}", layout="jsonl")
    assert load(folder) == stream(folder) == [1, 2, 5]
    save_rows(folder, "data:image/png;base64,?", "files/2.bin", "files/2.bin", layout="jsonl")
    message = r"row 2 \(data: URL\) .* cannot be decoded \(a data: URL must hold base64 text"
    refuses(stream, message, folder)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    home = HubHome("ann/set")
    home.commit = "c0ffee"
    return home, tmp_path / "hub" / "datasets--ann--set" / "snapshots" / "c0ffee"


def test_rows_of_a_hub_dataset_may_name_its_files_and_what_the_client_keeps_of_it(repository):
    home, kept = repository
    address = "hf://datasets/ann/set@c0ffee/a/x.png"
    assert home.find(address) == Place(address)
    assert home.find("a/x.png") == Place(address)
    assert home.find(f"{kept}/a/x.png") == Place(f"{kept}/a/x.png")
    zipped = "hf://datasets/ann/set@c0ffee/x.zip"
    assert home.find(f"zip://a.png::{zipped}") == Place(zipped, "zip", "a.png")
    assert home.find(f"zip://a.png::{kept}/x.zip") == Place(f"{kept}/x.zip", "zip", "a.png")


ELSEWHERE = [
    *("/etc/passwd", "../x.png", "file:///etc/passwd", "http://127.0.0.1/x.png", "hf://ann/set/x.png"),
    *("hf://datasets/ann/set2@c0ffee/x.png", "hf://datasets/ann/settings/x.png"),
    *("hf://datasets/bob/set@c0ffee/x.png", "hf://datasets/ann/set@c0ffee/../../bob/x.png"),
    *("hf://datasets/ann/set@c0ffee/x.png::http://127.0.0.1/", "{hub}/token"),
    "{hub}/datasets--bob--set/snapshots/c0ffee/x.png",
    "{hub}/datasets--ann--set/snapshots/../../datasets--bob--set/x.png",
    *("zip://a.png::/etc/x.zip", "zip://a.png::http://127.0.0.1/x.zip", "zip://a.png::x.zip"),
]


@pytest.mark.parametrize("path", ELSEWHERE)
def test_rows_of_a_hub_dataset_may_name_nothing_else(repository, path):
    home, kept = repository
    path = path.format(hub=kept.parents[2])
    assert home.find(path) is None
    refuses(home.check_files, "as data: all its files must lie in the repository 'ann/set' of the Hub", [path])


def test_messages_show_no_folders_and_no_line_breaks(tmp_path):
    write(tmp_path / "set" / "a.png", picture(1))
    home = LocalHome(str(tmp_path / "set"))
    assert home.shown(f"{tmp_path}/set/b/a.png") == "b/a.png"
    assert home.shown(f"{tmp_path}/other/a.png") == home.shown(f"zip://b/a.png::{tmp_path}/x.zip") == "a.png"
    assert home.shown("b/x\n# y\u202e.png") == "x\N{REPLACEMENT CHARACTER}# y\N{REPLACEMENT CHARACTER}.png"


def test_a_hub_dataset_may_name_its_own_files_and_no_others(hub_set, tmp_path, server):
    url, asked = server
    write(tmp_path / "set" / "files" / "a.bin", picture(3))
    hub_set(save_rows(tmp_path / "set", "files/a.bin"))
    assert load("ann/set") == stream("ann/set") == [1, 2, 3]
    outside = ["/etc/passwd", "../x.png", f"{url}/x.png", f"{tmp_path}/set/files/a.bin", "hf://datasets/bob/x/a.png"]
    for path in outside:
        hub_set(save_rows(tmp_path / "set", path))
        refused("ann/set", "row 2 .* must lie in the repository 'ann/set' of the Hub", on_corrupt="skip")
    for pattern in ("/etc/*.conf", f"{url}/x.png", "../../bob/x/*.png", "hf://datasets/bob/x/*.png"):
        write_card(tmp_path / "set", [{"config_name": "default", "data_files": pattern}])
        hub_set(tmp_path / "set")
        refuses(load, "the card of 'ann/set' names '.*' as data: all its files must lie in", "ann/set")
    assert asked == []


def test_what_was_prepared_of_a_folder_is_no_hub_dataset(tmp_path, monkeypatch):
    folder = save_rows(tmp_path / "photos")
    assert load(folder) == [1, 2]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    refuses(load, "'photos' is no folder here, and what the cache holds under this name", "photos")


def test_what_was_prepared_of_a_hub_dataset_is_found_without_a_connection(hub_set, tmp_path, monkeypatch):
    hub_set(pictures(tmp_path / "set"))
    assert load("ann/set") == [0, 1, 2]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert load("ann/set") == [0, 1, 2]


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "x" * 5000, "a\0b"])
def test_names_that_no_folder_can_have(name):
    refuses(load, "--data.name takes", name)
