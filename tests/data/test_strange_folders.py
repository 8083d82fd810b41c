"""Links, cards and indexes of untrusted folders and repositories neither lead out, hang nor crash."""

import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_folders import STRUCTURE, load, picture, pictures, refused, stream, write, write_card
from datasets import Dataset, DatasetDict
from test_local_home import save_rows

from ssdd_hub.data.bank import DataSettings
from ssdd_hub.errors import InputError
from ssdd_hub.runs.folder import RunFolder

# `datasets` leaves the files of metadata open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file")


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with an image, a table and an archive that no dataset owns."""
    write(tmp_path / "elsewhere" / "secret.png", picture(9))
    save_rows(tmp_path / "elsewhere" / "set")
    with zipfile.ZipFile(tmp_path / "elsewhere" / "x.zip", "w") as archive:
        archive.writestr("x.png", picture(9))
    return tmp_path / "elsewhere"


def link_out(name, target):
    return rf"the link '{name}' leads to '{target}': pass --data.follow-links true if the links are yours"


@pytest.mark.parametrize("brackets", ["set", "set[1]"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_row_whose_file_is_reached_by_a_link_out_is_refused_unless_links_are_followed(
    tmp_path, elsewhere, whole, brackets
):
    folder = save_rows(tmp_path / brackets, "ln.png" if whole else "up/secret.png")
    if whole:
        (folder / "ln.png").symlink_to(elsewhere / "secret.png")
        message = link_out("ln.png", elsewhere / "secret.png")
    else:
        (folder / "up").symlink_to(elsewhere)
        message = link_out("up", elsewhere)
    refused(folder, message, on_corrupt="skip")
    # A linked folder is read too, with the table in it.
    expected = [1, 2, 9] if whole else [1, 1, 2, 2, 9]
    assert load(folder, follow_links=True) == stream(folder, follow_links=True) == expected


def test_a_row_in_an_archive_that_is_a_link_out_is_refused(tmp_path, elsewhere):
    folder = tmp_path / "set"
    save_rows(folder, f"zip://x.png::{folder}/x.bin")
    (folder / "x.bin").symlink_to(elsewhere / "x.zip")
    refused(folder, link_out("x.bin", elsewhere / "x.zip"), on_corrupt="skip")
    assert load(folder, follow_links=True) == stream(folder, follow_links=True) == [1, 2, 9]


@pytest.mark.parametrize("brackets", ["set", "set[1]"])
@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("9.png", "secret.png", [0, 1, 2, 9]),
        ("x.parquet", "set/train.parquet", [1, 2]),
        ("x.zip", "x.zip", [0, 1, 2, 9]),
        ("metadata.csv", "m.csv", [0, 1, 2]),
    ],
)
def test_a_data_file_that_is_a_link_out_is_refused(tmp_path, elsewhere, name, target, expected, brackets):
    write(elsewhere / "m.csv", "file_name,kind\n0.png,a\n1.png,b\n2.png,c\n")
    folder = pictures(tmp_path / brackets, 0 if name == "x.parquet" else 3)
    (folder / name).symlink_to(elsewhere / target)
    refused(folder, link_out(name, elsewhere / target))
    assert load(folder, follow_links=True) == stream(folder, follow_links=True) == expected


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml", "dataset_infos.json"])
def test_what_is_read_beside_the_data_is_no_link_out(tmp_path, name):
    folder = pictures(tmp_path / "set")
    write(tmp_path / "other", "{}")
    (folder / name).symlink_to(tmp_path / "other")
    refused(folder, link_out(name, tmp_path / "other"))


def test_links_within_a_folder_and_to_it_are_followed(tmp_path):
    folder = pictures(tmp_path / "set")
    (folder / "9.png").symlink_to("1.png")
    (tmp_path / "linked").symlink_to(folder)
    assert load(folder) == stream(folder) == load(tmp_path / "linked") == [0, 1, 1, 2]


@pytest.mark.parametrize("target", ["/etc", "."])
def test_a_linked_folder_in_a_folder_of_images_is_refused_since_its_images_would_be_missing(tmp_path, target):
    folder = pictures(tmp_path / "set")
    (folder / "unused").symlink_to(target)
    refused(
        folder,
        "the folder 'unused' of '.*set' is not entered: the link .*: pass --data.follow-links true",
        on_corrupt="skip",
    )


@pytest.mark.parametrize("part", ["train", "train/data-00000-of-00001.arrow", "train/state.json"])
def test_a_saved_dataset_with_a_link_out_is_refused(tmp_path, part):
    table = Dataset.from_dict({"image": [{"bytes": picture(value), "path": None} for value in (1, 2)]})
    DatasetDict({"train": table}).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / part).rename(tmp_path / "moved")
    (tmp_path / "set" / part).symlink_to(tmp_path / "moved")
    refused(tmp_path / "set", "link.* to '.*moved': pass --data.follow-links true")
    assert load(tmp_path / "set", follow_links=True) == [1, 2]


def test_a_run_goes_on_when_links_are_followed_or_not(tmp_path):
    settings = {"data": {"name": "x"}, "seed": 0}
    RunFolder(tmp_path / "run", settings).start()
    RunFolder(tmp_path / "run", {**settings, "data": {"name": "x", "follow_links": True}}).start()


def bomb():
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 10)]
    return "\n".join([*lines, "configs:", "- config_name: default", "  data_files: *a9", ""])


CARDS = {
    "aliases": bomb(),
    "itself": "configs:\n- config_name: default\n  data_files: &a [*a]\n",
    "deep": f"configs: {'[' * 3000}{']' * 3000}\n",
    "tagged": "x: !!timestamp abc\n",
    "number": f"x: {'9' * 200000}\n",
    "date": "x: 2020-99-99\n",
    "long": "x: [" + "y,\n" * 2**21 + "]\n",
}


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("card", CARDS)
def test_a_card_that_is_no_plain_yaml_is_refused(tmp_path, card, name):
    folder = pictures(tmp_path / "set")
    write(folder / name, f"---\n{CARDS[card]}---\n" if name == "README.md" else CARDS[card])
    refused(folder, f"'{name}' of the dataset '.*set' must be a text with plain YAML, without aliases, .*: repair it")


def test_the_block_of_a_card_ends_where_datasets_ends_it(tmp_path):
    folder = pictures(tmp_path / "set")
    write(folder / "README.md", f"---\n\n---\r{CARDS['itself']}---\n")
    refused(folder, "'README.md' of the dataset '.*set' must be a text with plain YAML")


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_a_card_of_the_hub_that_is_no_plain_yaml_is_refused(tmp_path, hub_set, name):
    folder = pictures(tmp_path / "set")
    write(folder / name, f"---\n{CARDS['aliases']}---\n" if name == "README.md" else CARDS["aliases"])
    hub_set(folder)
    refused("ann/set", f"'{name}' of the dataset 'ann/set' must be a text with plain YAML, without aliases")


def test_a_yaml_file_of_the_hub_that_names_data_elsewhere_is_refused(tmp_path, hub_set):
    folder = pictures(tmp_path / "set")
    write_card(folder, [{"config_name": "default", "data_files": "/etc/*"}], ".huggingface.yaml")
    hub_set(folder)
    refused("ann/set", "the card of 'ann/set' names '/etc/\\*' as data: all its files must lie in the repository")


def test_a_long_honest_card_is_read(tmp_path):
    folder = pictures(tmp_path / "set")
    configs = [{"config_name": f"c{number}", "data_files": "*.png"} for number in range(500)]
    write(folder / "README.md", f"---\nlicense: mit\n{json.dumps({'configs': configs})[1:-1]}\n---\n")
    assert load(folder, config="c499") == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"splits": ["a", "b"]}', "the split 'a' of '.*set' must be a folder, and is a link to '.*set'"),
        (json.dumps({"splits": ["a"] * 300}), "'dataset_dict.json' of '.*set' must name each split once"),
        (f'{{"splits": {"[" * 5000}{"]" * 5000}}}', "'dataset_dict.json' of '.*set' is nested too deep to be read"),
        (" " * (2**24 + 1), "'dataset_dict.json' of '.*set' must be of at most 16777216 bytes, got 16777217"),
    ],
)
def test_an_index_of_splits_does_not_hang(tmp_path, content, message):
    write(tmp_path / "set" / "dataset_dict.json", content)
    for name in ("a", "b"):
        (tmp_path / "set" / name).symlink_to(".")
    refused(tmp_path / "set", message)


def test_splits_are_not_followed_deeper_than_they_are_saved(tmp_path):
    write(tmp_path / "set" / "dataset_dict.json", '{"splits": ["a", "b"]}')
    for name in ("a", "b"):
        (tmp_path / "set" / name).symlink_to(".")
    refused(tmp_path / "set", "cannot be read", follow_links=True)


def deep_feature():
    feature = '{"_type": "List", "feature": ' * 3000 + '{"dtype": "int64", "_type": "Value"}' + "}" * 3000
    return f'{{"info": {{"features": {{"x": {feature}}}}}}}'


@pytest.mark.parametrize("info", ['{"info": {"features": [1]}}', '{"info": null}', deep_feature()])
def test_metadata_of_a_table_that_datasets_believes_is_no_traceback(tmp_path, info):
    rows = pa.array([{"bytes": picture(1), "path": None}] * 3, STRUCTURE)
    (tmp_path / "set").mkdir()
    table = pa.table({"image": rows}).replace_schema_metadata({"huggingface": info})
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    refused(tmp_path / "set", "the dataset '.*' cannot be read|cannot be opened")


@pytest.mark.parametrize(("name", "kind"), [("train.h5", "hdf5"), ("x.lance/data/x.lance", "lance"), ("a.xml", "xml")])
def test_formats_that_may_lead_elsewhere_are_refused_by_name(tmp_path, name, kind):
    write(tmp_path / "set" / name, b"\x89HDF")
    refused(tmp_path / "set", f"its files are of the format '{kind}', which may lead to files elsewhere: convert them")


@pytest.mark.parametrize("size", [7, 4097, 40000])
def test_image_sizes_that_no_memory_holds_are_refused(size):
    with pytest.raises(InputError, match=f"--data.image-size must be from 8 to 4096, got {size}"):
        DataSettings(image_size=size)
