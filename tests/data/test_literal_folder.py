"""Names of folders and files are literal, whatever characters they hold."""

import concurrent.futures
import json
import os
import shutil
import zipfile
from functools import cache

import datasets
import pytest
from data_folders import IMAGES, banks_of, picture, reds, refuses, save_as, stream_of, write
from datasets import Dataset, DatasetDict

from ssdd_hub.data.literal_folder import listed, literal, plain, plain_tree
from ssdd_hub.errors import InputError

# `datasets` leaves the files of metadata open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file")

NAMES = [
    *("[12]", "run[12]", "run[!a]", "a*b", "**", "a?b", "[", "]", "{a,b}", "!x", "with some spaces ", "a::b"),
    *("zip:::x", "a#b", "%41", "Zoë 画像", "-leading", "trailing...", "~", "two\nlines", "a:b", "back\\slash"),
    *("$HOME", "images.py", "imagefolder"),
]
LAYOUTS = ["folder", "classes", "splits", "metadata.csv", "metadata.jsonl", "parquet", "saved", "card", "zip"]


def build(folder, layout, odd="plain", start=0):
    """Writes twenty images from `start` on, the folders, files and archives inside with odd names."""
    files = [picture(number) for number in range(start, start + 20)]
    names = [f"{odd}{index:02}.png" for index in range(20)]
    if layout == "classes":
        names = [f"{'b' if index % 3 else 'a'}{odd}/{name}" for index, name in enumerate(names)]
    elif layout == "splits":
        names = [f"{'train' if index < 14 else 'test'}/{index % 2}{odd}/{name}" for index, name in enumerate(names)]
    elif layout == "zip":
        names = [f"in/{name.replace('::', ':')}" for name in names]
    if layout in ("saved", "parquet", "card"):
        table = Dataset.from_dict({"image": [{"bytes": file, "path": None} for file in files]}, IMAGES)
        if layout == "saved":
            DatasetDict({"train": table, "test": table.select(range(3))}).save_to_disk(folder)
        else:
            (folder / "data").mkdir(parents=True)
            table.to_parquet(folder / "data" / "new")
            (folder / "data" / "new").rename(folder / "data" / f"train-{odd}.parquet")
            table.select(range(3)).to_parquet(folder / "data" / "test-0.parquet")
    else:
        save_as(folder, "zip" if layout == "zip" else "folder", dict(zip(names, files, strict=True)))
    if layout == "zip":
        (folder / "images.zip").rename(folder / f"{odd}.zip")
    if layout.startswith("metadata"):
        rows = list(enumerate(names))
        csv = "file_name,number\n" + "".join(f'"{name}",{index}\n' for index, name in rows)
        lines = "".join(json.dumps({"file_name": name, "number": index}) + "\n" for index, name in rows)
        write(folder / layout, csv if layout.endswith("csv") else lines)
    files = [{"split": split, "path": f"data/{split}-*"} for split in ("train", "test")]
    configs = {"configs": [{"config_name": "default", "data_files": files}]} if layout == "card" else {}
    write(folder / "README.md", f"---\n{json.dumps({'license': 'mit', **configs})}\n---\n")
    return folder


def tree_of(folder):
    return plain_tree(folder, listed(folder))


def outcome(folder, **settings):
    """All that loading gives: the stream, and both banks."""
    # First, since the stream then knows the number of rows.
    banks = banks_of(folder, **settings)
    stream = stream_of(folder, **settings)
    result = [reds(stream), stream.provenance["license"], stream.num_rows]
    for bank in banks:
        source = {key: value for key, value in bank.provenance.items() if key != "name"}
        result += [reds(bank), None if bank.labels is None else bank.labels.tolist(), bank.label_names, source]
    return result


@pytest.fixture(scope="module")
def plain_one(tmp_path_factory):
    """Builds a folder of plain names, once for each layout, and returns it and what it gives."""

    @cache
    def make(layout):
        folder = build(tmp_path_factory.mktemp("plain") / "set", layout)
        return folder, outcome(folder)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_gives_what_it_gives_under_a_plain_one(plain_one, tmp_path, name):
    for index, other in enumerate(["run1", "run2", "axb", "ab", "aa", "a", "b", "A", "x"]):
        build(tmp_path / "sets" / other, "classes", start=100 + index)
    layout = LAYOUTS[NAMES.index(name) % len(LAYOUTS)]
    for kind in {layout, "classes"}:
        made, expected = plain_one(kind)
        folder = tmp_path / "sets" / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
        assert outcome(folder) == expected
        assert expected[1] == "mit" and sorted(expected[0])[:3] == [0, 1, 2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_can_have_an_odd_name(plain_one, tmp_path, layout):
    build(tmp_path / "run1", layout, start=100)
    made, expected = plain_one(layout)
    for name in ("run[12]", "run[12]::x"):
        shutil.copytree(made, tmp_path / name)
        assert outcome(tmp_path / name) == expected


@pytest.mark.parametrize("layout", ["classes", "metadata.csv", "parquet", "zip"])
@pytest.mark.parametrize("odd", ["a::b", "[1]", "a*b", "a?b", "{a,b}", "#1", "%41", "é", "a\nb", "$HOME", "${HOME}"])
def test_names_inside_are_literal(plain_one, tmp_path, layout, odd):
    (_, plain_names), odd_names = plain_one(layout), outcome(build(tmp_path / "set", layout, odd))
    assert odd_names[0] == plain_names[0] and odd_names[3] == plain_names[3] and odd_names[7] == plain_names[7]
    assert [labels for labels in (odd_names[4], odd_names[8])] == [plain_names[4], plain_names[8]]
    if layout == "classes":
        assert odd_names[5] == ["a" + odd, "b" + odd]


def test_messages_show_the_names_themselves(tmp_path):
    folder = build(tmp_path / "run[12]", "classes", "::")
    write(folder / "b::" / "::05.png", b"nothing")
    refuses(banks_of, r"image at row \d+ \(b::/::05.png\) of the split 'train' of '.*run\[12\]'", folder)


def test_relative_names_parents_and_links_lead_to_their_folder(tmp_path, monkeypatch):
    expected = outcome(build(tmp_path / "run[12]", "classes"))
    (tmp_path / "link").symlink_to("run[12]")
    (tmp_path / "down").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("run[12]", "./run[12]", "down/../run[12]", "link", "link/../run[12]/.", "./link/"):
        assert outcome(name) == expected
    monkeypatch.chdir(tmp_path / "run[12]")
    assert outcome(".") == expected
    monkeypatch.chdir(tmp_path / "down")
    assert outcome("../run[12]") == expected


@pytest.mark.parametrize("name", ["imagefolder", "parquet", "json", "csv", "webdataset", "arrow", "text"])
def test_a_format_is_a_name_like_others_and_never_the_working_directory(tmp_path, monkeypatch, name):
    build(tmp_path / "here", "classes", start=100)
    monkeypatch.chdir(tmp_path / "here")
    refuses(banks_of, f"'{name}' is a format and no dataset, and there is no folder of that name", name)
    build(tmp_path / "here" / name, "classes")
    assert sorted(outcome(name)[0]) == list(range(20))


@pytest.mark.parametrize(
    "name", ["a b", "a:b", "-a", "a.", "a--b", "x" * 97, "a[1]", "a/b*", "http:x", "buckets/a", "é"]
)
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    refuses(banks_of, r"is neither a folder that exists nor a Hub id|is a bucket", name)


def test_ordinary_folders_are_read_where_they_are(tmp_path):
    for name in ("plain", "with spaces", "{a,b}", "#", "%41", "!x", "-x", "é", "trailing...", "a:b"):
        folder = build(tmp_path / name, "classes")
        assert tree_of(folder) == folder
    assert not (tmp_path / "cache").exists()


def test_a_tree_follows_its_folder_and_is_found_again(tmp_path):
    folder = build(tmp_path / "run[12]", "folder")
    tree = tree_of(folder)
    assert tree_of(folder) == tree and len(list(tree.glob("*.png"))) == 20
    before = sorted(outcome(folder)[0])
    write(folder / "more.png", picture(77))
    assert sorted(outcome(folder)[0]) == [*before, 77]
    write(folder / "more.png", picture(78))
    os.utime(folder / "more.png", (1, 1))
    assert sorted(outcome(folder)[0]) == [*before, 78]


def test_several_can_make_the_same_tree_at_once(tmp_path):
    folder = build(tmp_path / "run[12]", "classes")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        trees = set(pool.map(tree_of, [folder] * 16))
    assert len(trees) == 1 and [path for path in next(iter(trees)).parent.iterdir()] == list(trees)


def test_a_cache_with_an_odd_name_is_refused_where_links_are_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache[1]")
    with pytest.raises(InputError, match="links with plain names, .* set HF_DATASETS_CACHE to a plain path"):
        tree_of(build(tmp_path / "run[12]", "folder"))


@pytest.mark.parametrize("name", ["a::b", ":::", "a/::/b", "x\n", "plain", "a:/:b"])
def test_plain_names_stand_for_their_originals(name):
    assert literal(plain(name)) == name and "::" not in plain(name) and "\n" not in plain(name)


@pytest.mark.parametrize("member", ["a::b.png", "in/a::b.png", "[1].png"])
def test_names_in_archives_that_would_be_left_out_are_refused(tmp_path, member):
    folder = build(tmp_path / "set", "zip")
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.writestr(member, picture(1))
    refuses(banks_of, r"the archive 'more.zip' of .* names in archives must hold no '::'", folder)
