import copy
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from test_distilled import PARQUET, make_set

from ssdd_hub.errors import InputError
from ssdd_hub.hub.download import fetch_set
from ssdd_hub.hub.markdown import read_header
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record import read_metadata
from ssdd_hub.sets import distilled
from ssdd_hub.sets.check import PICKLES, Finding, check_card, check_folder, check_set, read_card, verify_folder
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.publish import pack_set
from ssdd_hub.targets.transform import TargetTransform

TOKEN = "hf_" + "abcdefgh" * 4
PROVENANCE = {
    "method": "krr-st",
    "license": "cc-by-4.0",
    "settings": {"steps": 3, "rates": [0.1, 0.2]},
    "seed": 0,
    "source": {"name": "digits", "num_images": 9, "license": "cc-by-4.0"},
    "teacher": {"name": "small", "license": "mit"},
    "student": {"name": "ssdd_convnet3", "model_args": {"norm": "batch"}},
    "use": {"optimizer": "sgd", "lr": 0.1},
    "command": "python recipes/distill.py",
    "seconds": 2.5,
    "scores": [{"set": "distilled", "protocol": "knn", "metric": "accuracy", "mean": 0.5, "std": 0.1, "n": 3}],
}


def make_full_set():
    generator = torch.Generator().manual_seed(0)
    space = PixelSpace((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    features = torch.randn(20, 7, generator=generator)
    return DistilledSet(
        space.normalise(torch.rand(6, 3, 8, 9, generator=generator) * 1.5 - 0.25),
        torch.randn(6, 4, generator=generator),
        space,
        labels=torch.tensor([0, 2, 1, -1, 0, 2]),
        label_names=["cat", "dog", "eel"],
        target_transform=TargetTransform.fit("pca", features, 4),
        views=torch.tensor([[[0, 3, 1], [8, 8, 0]]]).repeat(6, 1, 1),
        view_targets=torch.randn(6, 2, 4, generator=generator),
        provenance=copy.deepcopy(PROVENANCE),
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_full_set().save(tmp_path_factory.mktemp("check") / "set")


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "set"))


def record_of(folder):
    return json.loads((folder / "ssdd_hub.json").read_text())


def restate(folder, place, *values, record=None):
    """Writes a value at a place of the record, such as `tensors.images.shape`; without one, deletes what is there."""
    record = part = copy.deepcopy(record) or record_of(folder)
    *path, last = place.split(".") if isinstance(place, str) else place
    for name in path:
        part = part[name]
    if values:
        part[last] = values[0]
    else:
        del part[last]
    (folder / "ssdd_hub.json").write_text(json.dumps(record))


def recard(folder, **changes):
    """Writes values into the YAML of the card; None deletes."""
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    header = {name: value for name, value in {**yaml.safe_load(front), **changes}.items() if value is not None}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(header)}---\n{body}")


def write_front(folder, front):
    (folder / "README.md").write_text(f"---\n{front}\n---\n# A card\n")


def errors(found):
    return [f"{finding.place}: {finding.text}" for finding in found if finding.level == "error"]


def the_error(folder):
    """Returns the one error that the linter finds."""
    (error,) = errors(check_folder(folder))
    return error


def test_a_saved_set_that_records_everything_passes(folder):
    assert check_folder(folder) == [] == check_folder(str(folder))
    metadata = read_metadata(folder)
    assert check_set(folder, metadata) == [] == check_card(metadata, read_card(folder))
    verify_folder(folder)


def test_a_saved_set_that_records_nothing_has_warnings_and_no_errors(tmp_path):
    found = check_folder(make_set().save(tmp_path / "set"))
    assert [str(finding) for finding in found] == [
        "warning: ssdd_hub.json: does not record method, settings, seed, source, teacher, use, command",
        "warning: ssdd_hub.json: records no scores: evaluate the set, or pass their file",
        "warning: ssdd_hub.json: the licence is unknown: state one if you may",
    ]


def test_a_set_in_several_pieces_passes(tmp_path, monkeypatch):
    # One row a row group, and two a file.
    monkeypatch.setattr("ssdd_hub.sets.parquet.ROW_GROUP_BYTES", 1)
    monkeypatch.setattr("ssdd_hub.sets.parquet.SHARD_BYTES", 2500)
    folder = make_full_set().save(tmp_path / "set")
    assert len(list(folder.glob("data/*"))) > 2
    assert check_folder(folder) == []


def test_errors_stand_before_warnings(folder):
    (folder / "notes.txt").write_text("")
    (folder / "zz.pkl").write_bytes(b"")
    restate(folder, "provenance.seed")
    recard(folder, tags=None)
    found = check_folder(folder)
    places = [("error", "README.md"), ("error", "zz.pkl"), ("warning", "notes.txt"), ("warning", "ssdd_hub.json")]
    assert [(finding.level, finding.place) for finding in found] == places and found == sorted(found)
    of_set = check_set(folder, read_metadata(folder))
    assert [finding.level for finding in of_set] == ["error", "warning", "warning"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a distilled set: it has no ssdd_hub.json"),
        (b"{", "is damaged, it is not JSON"),
        (b"\xff\xfe", "is damaged, it is not JSON"),
        (b"[" * 100_000, "must be nested at most 30 deep"),
        (b'{"format_version": 1, "a": ' + b"[" * 31 + b"]" * 31 + b"}", "must be nested at most 30 deep"),
        (b" " * (2**23 + 1), "must be of at most 8388608 bytes, got 8388609"),
        (b"{}", "states format_version None, this ssdd_hub reads 1 and 2"),
        (b'{"format_version": 3}', "states format_version 3, this ssdd_hub reads 1 and 2"),
        (b"[1]", "states format_version None"),
    ],
)
def test_a_record_that_cannot_be_read_is_an_error(folder, content, message):
    path = folder / "ssdd_hub.json"
    path.unlink() if content is None else path.write_bytes(content)
    assert message in the_error(folder)
    with pytest.raises(InputError, match=message.partition(",")[0]):
        verify_folder(folder)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("absent", "file"):
        assert the_error(tmp_path / name).endswith("the folder does not exist")


@pytest.mark.parametrize(
    ("place", "values", "message"),
    [
        ("tensors", [[]], "ssdd_hub.json: tensors must be stated by name"),
        ("tensors.images", [], "ssdd_hub.json: tensors: images and targets must be stated; there are no images"),
        ("tensors.weights", [{}], "coefficients can be stated; got weights"),
        ("tensors.images.shape", [[6, 3, 9, 8]], "data: column 'pixels' does not hold images of the stated shape"),
        ("tensors.images.shape", [[6, 3, 0, 9]], "must be 1 to 5 whole numbers above 0; got [6, 3, 0, 9]"),
        ("tensors.images.sha256", ["0" * 64], "data: the images are not those that were saved, their sha256 differs"),
        ("tensors.targets.sha256", ["0" * 64], "data: the targets are not those that were saved"),
        ("tensors.labels.sha256", ["0" * 64], "data: the labels are not those that were saved"),
        ("tensors.views.sha256", ["0" * 64], "data: the views are not those that were saved"),
        ("tensors.view_targets.sha256", ["0" * 64], "data: the view_targets are not those that were saved"),
        ("tensors.images.sha256", [], "tensors.images: a sha256 must be 64 hexadecimal digits; got ''"),
        ("tensors.views", [], "data: views and their targets belong together"),
        ("tensors.labels", [], "data: label_names without labels mean nothing"),
        ("pixel_space", [{"mean": [0.5], "std": [0.2]}], "pixel_space must have the images' 3 channel(s); got 1"),
        ("pixel_space.mean", [[float("nan"), 0, 0]], "pixel_space.mean[0] must be a finite number of usual size"),
        ("pixel_space.std", [[0.2, 0.2, 0]], "pixel_space: every std of a pixel space must be above 0"),
        ("pixel_space.std", [[0.2, 0.2, 1e-30]], "pixel_space: every std of a pixel space must be above 0"),
        ("pixel_space.std", [[0.2, 0.2, float("inf")]], "pixel_space.std[2] must be a finite number"),
        ("pixel_space.mean", ["555"], "pixel_space: a pixel space must hold mean and std, lists of finite numbers"),
        ("pixel_space.mean", [["0.5", "0.5", "0.5"]], "pixel_space: a pixel space must hold mean and std, lists"),
        ("pixel_space", ["raw"], "pixel_space: a pixel space must hold mean and std, lists of finite numbers"),
        ("pixel_range", [[0, 1]], "states pixels from 0 to 1, and they are from -0.24"),
        ("pixel_range", [[0, 10**400]], "ssdd_hub.json: pixel_range[1] must be a finite number of usual size"),
        ("pixel_range", [], "ssdd_hub.json: pixel_range is missing: fetch or make the set again"),
        ("pixel_range", [[0, 1, 2]], "ssdd_hub.json: pixel_range must be a list of 2, got [0, 1, 2]"),
        ("clip_fraction", [0], "ssdd_hub.json: states the clip_fraction 0, and it is 0.3"),
        ("clip_fraction", [-0.1], "ssdd_hub.json: states the clip_fraction -0.1, and it is"),
        ("clip_fraction", ["0"], "ssdd_hub.json: clip_fraction must be a number, got '0'"),
        ("clip_fraction", [True], "ssdd_hub.json: clip_fraction must be a number, got True"),
        ("label_names", [["cat", "dog"]], "data: labels must lie in [-1, 2) to match label_names; got -1 to 2"),
        ("label_names", [["cat", 5]], "ssdd_hub.json: label_names[1] must be text, got 5"),
        ("label_names", ["cat"], "ssdd_hub.json: label_names must be a list, got 'cat'"),
        ("target_transform", [], "target_transform.safetensors: is there, and the record states none: remove it"),
        ("target_transform", [{}], "ssdd_hub.json: target_transform.sha256 is missing"),
        ("target_transform.sha256", ["0" * 64], "target_transform.safetensors is not a whole target transform"),
        # As nothing at all it would let any file pass.
        ("target_transform.sha256", [None], "ssdd_hub.json: target_transform.sha256 is missing"),
        ("target_transform", [None], "target_transform.safetensors: is there, and the record states none: remove it"),
        ("provenance", [[]], "ssdd_hub.json: provenance must be an object, got []"),
        ("provenance", [], "ssdd_hub.json: provenance is missing"),
        ("provenance.scores", [{"mean": 1}], "ssdd_hub.json: provenance.scores must be a list, got"),
        ("provenance.scores", [[{}, 5]], "ssdd_hub.json: provenance.scores[1] must be an object, got 5"),
        ("provenance.scores", [[{"mean": "x"}]], "ssdd_hub.json: provenance.scores[0].mean must be a number, got 'x'"),
        ("provenance.seconds", ["long"], "ssdd_hub.json: provenance.seconds must be a number of at least 0, got"),
        ("provenance.student", ["ssdd_convnet3"], "ssdd_hub.json: provenance.student must be an object, got"),
        ("provenance.source", ["digits"], "ssdd_hub.json: provenance.source must be an object, got"),
        ("provenance.use.epochs", [-1], "ssdd_hub.json: provenance.use.epochs must be a whole number from 0 to 1"),
        ("provenance.use.epochs", [True], "ssdd_hub.json: provenance.use.epochs must be a whole number from 0 to 1"),
        ("provenance.teacher.weights_sha256", ["abc"], "provenance.teacher.weights_sha256 must be 64 hexadecimal"),
        ("provenance.license", [["mit"]], "ssdd_hub.json: provenance.license must be text, got ['mit']"),
        ("provenance.note", [float("nan")], "provenance.note must be a finite number of usual size, got nan"),
        ("provenance.note", [[{"a": 10**400}]], "provenance.note[0].a must be a finite number of usual size"),
        ("provenance.note", ["\ud800"], "provenance.note must be text that UTF-8 can hold, got"),
        ("provenance.\ud800", ["x"], "a name in provenance must be text that UTF-8 can hold, got"),
        ("provenance.note", [f"used {TOKEN}"], "ssdd_hub.json: holds what looks like an access token: remove it, and"),
        (f"provenance.{TOKEN}", [0], "ssdd_hub.json: holds what looks like an access token"),
    ],
)
def test_a_record_that_is_wrong_is_an_error(folder, place, values, message):
    restate(folder, place, *values)
    assert any(message in error for error in errors(check_folder(folder)))


def test_names_that_lead_elsewhere_are_not_taken_from_the_record(folder, tmp_path):
    record = record_of(folder)
    record["tensors"]["../../outside"] = record["tensors"]["images"]
    record["target_transform"]["path"] = "../outside.safetensors"
    (folder / "ssdd_hub.json").write_text(json.dumps(record))
    (tmp_path / "outside").write_text("")
    assert "can be stated; got ../../outside" in the_error(folder)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("images", [10**12, 3, 1000, 1000]), ("targets", [6, 10**18]), ("views", [6, 10**9, 3]), ("labels", [10**4000])],
)
def test_sizes_that_are_only_stated_are_refused_before_anything_is_read(folder, monkeypatch, name, shape):
    def forbidden(*args, **kwargs):
        raise AssertionError("something was read")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", forbidden)
    restate(folder, f"tensors.{name}.shape", shape)
    size = "labels.shape[0] must be a finite number of usual size"
    assert (size if name == "labels" else f"does not hold {name} of the stated shape ({shape[0]},") in the_error(
        folder
    )


def test_a_record_for_publishing_is_judged_and_not_that_of_the_folder(folder):
    lies, huge = read_metadata(folder), read_metadata(folder)
    lies["pixel_range"] = [0, 1]
    assert "states pixels from 0 to 1" in errors(check_set(folder, lies))[0]
    # It would be published, and could then not be read again.
    huge["provenance"]["notes"] = ["x" * 2**16] * 2**7
    assert "at most 8388608 bytes" in errors(check_set(folder, huge))[0]


@pytest.mark.parametrize("part", ["images", "targets", "view_targets"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_on_which_nothing_can_be_trained_are_an_error(tmp_path, monkeypatch, part, value):
    made, measured = make_full_set(), {"pixel_range": [-0.25, 1.25], "clip_fraction": 0.35}
    getattr(made, part)[-1] = value
    monkeypatch.setattr(distilled, "measure_range", lambda pixels: measured)
    folder = made.save(tmp_path / "set")
    assert f"data: the {part} hold NaN or infinite values" in the_error(folder)
    with pytest.raises(InputError, match=f"data: the {part} hold NaN"):
        verify_folder(folder)


def test_a_shard_that_is_missing_or_damaged_is_an_error(folder):
    (folder / PARQUET).write_bytes((folder / PARQUET).read_bytes()[:-30])
    assert "data: the parquet files of" in the_error(folder)
    (folder / PARQUET).rename(folder / "data" / "train-00000-of-00002.parquet")
    assert "some are missing or not of this set" in the_error(folder)
    shutil.rmtree(folder / "data")
    assert "has no data/train-*.parquet" in the_error(folder)


def test_a_transform_that_is_missing_changed_or_of_another_width_is_an_error(folder):
    path = folder / "target_transform.safetensors"
    sha256 = TargetTransform.fit("centre", torch.zeros(3, 5)).save(path)
    assert "is not a whole target transform (its sha256 differs" in the_error(folder)
    restate(folder, "target_transform.sha256", sha256)
    assert the_error(folder) == "data: target_transform.safetensors gives targets of width 5, the set's have 4"
    path.unlink()
    assert "is not a whole target transform" in the_error(folder)


def test_a_set_without_provenance_is_not_verified(folder):
    restate(folder, "provenance")
    with pytest.raises(InputError, match="ssdd_hub.json .*provenance is missing"):
        verify_folder(folder)


@pytest.mark.parametrize("place", ["", "data/", ".hidden/", ".cache/huggingface/", "a/b/"])
def test_a_file_that_may_run_code_is_an_error_wherever_it_is(folder, place):
    (folder / place).mkdir(parents=True, exist_ok=True)
    names = [f"{place}model{ending}" for ending in sorted([*PICKLES, ".PT", ".Pkl"])]
    for name in names:
        (folder / name).write_bytes(pickle.dumps([1]))
    text = "a file of this kind may run code when it is loaded: remove it"
    assert check_set(folder, read_metadata(folder)) == [Finding("error", name, text) for name in names]
    assert {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"} <= PICKLES


def test_another_file_is_a_warning_but_for_what_the_client_notes(folder):
    names = ["data/extra.parquet", "data/readme", "model.safetensors", "run.py"]
    for name in (".cache/huggingface/CACHEDIR.TAG", *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / "empty.pkl").mkdir()
    text = "is no part of a distilled set, and will not be published"
    assert check_folder(folder) == [Finding("warning", name, text) for name in names]


@pytest.mark.parametrize("content", [None, b"", b"GIF89a", b"\x89PNG"])
def test_a_preview_that_is_missing_or_no_picture_is_an_error(folder, content):
    path = folder / "preview.png"
    path.unlink() if content is None else path.write_bytes(content)
    expected = "is missing: save the set again" if content is None else "is no PNG picture: save the set again"
    assert the_error(folder) == f"preview.png: {expected}"


# Links and devices

OWN = ["README.md", "ssdd_hub.json", "preview.png", "target_transform.safetensors", PARQUET]


@pytest.mark.parametrize("name", [*OWN, "data"])
def test_a_link_out_of_the_folder_is_an_error_since_what_it_leads_to_would_be_published(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    expected = f"{name}: is a link to {tmp_path / 'outside'}: put the file itself there"
    assert the_error(folder) == expected
    with pytest.raises(InputError, match="is a link to .*: put the file itself there"):
        pack_set(folder, "ann/set")


@pytest.mark.parametrize(
    ("name", "target"),
    [("preview.png", "absent.png"), ("README.md", "README.md"), ("preview.png", "pictures.png"), ("data", "shards")],
)
def test_a_link_to_nothing_to_itself_or_within_the_folder_is_an_error_too(folder, name, target):
    (folder / name).rename(folder / target if target in ("pictures.png", "shards") else folder / "aside")
    (folder / name).symlink_to(target)
    assert the_error(folder) == f"{name}: is a link to {folder / target}: put the file itself there"


def test_a_folder_that_is_reached_by_a_link_passes(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert check_folder(tmp_path / "link") == []


def test_other_links_are_not_followed(folder, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "weights.pkl").write_text("")
    (folder / "notes").symlink_to(tmp_path / "private")
    (folder / "notes.txt").symlink_to(tmp_path / "private" / "weights.pkl")
    (found,) = check_folder(folder)
    assert (found.level, found.place) == ("warning", "notes.txt")


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_in_the_place_of_a_file_is_an_error_and_nobody_waits_for_it(folder, name, linked):
    (folder / name).unlink()
    os.mkfifo(folder / ("data/pipe" if linked else name))
    if linked:
        (folder / name).symlink_to(folder / "data/pipe")
    wrong = f"is a link to {folder / 'data/pipe'}" if linked else "is neither a file nor a folder"
    assert the_error(folder).startswith(f"{name}: {wrong}")


def test_a_set_in_the_cache_of_the_client_passes(hub, tmp_path):
    make_full_set().push_to_hub("ann/set", token="hf_ann")
    folders = []
    fetch_set("ann/set", folders.append)
    assert (folders[0] / "preview.png").is_symlink()
    assert check_folder(folders[0]) == []


def test_a_folder_made_to_look_like_the_cache_of_the_client_opens_no_way_out(folder, tmp_path):
    snapshot = tmp_path / "cache" / "snapshots" / "0123"
    shutil.copytree(folder, snapshot)
    blobs, private = tmp_path / "cache" / "blobs", tmp_path / "private"
    private.mkdir()
    (private / "key").write_bytes((folder / "preview.png").read_bytes())
    blobs.mkdir()
    (blobs / "key").symlink_to(private / "key")
    (snapshot / "preview.png").unlink()
    (snapshot / "preview.png").symlink_to("../../blobs/key")
    expected = f"preview.png: is a link to {private / 'key'}: put the file itself there"
    assert the_error(snapshot) == expected
    shutil.rmtree(blobs)
    blobs.symlink_to(private)
    assert the_error(snapshot) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: save the set again"),
        (b"x" * (2**20 + 1), "must be of at most 1048576 bytes, got 1048577"),
        (b"---\nlicense: \xff\n---\n", "is no text in UTF-8"),
    ],
)
def test_a_card_that_cannot_be_read_is_an_error(folder, content, message):
    path = folder / "README.md"
    path.unlink() if content is None else path.write_bytes(content)
    assert the_error(folder).startswith(f"README.md: {message}")
    with pytest.raises(InputError, match=message):
        read_card(folder)


@pytest.mark.parametrize(
    "text", ["# A card\n", "---\nlicense: mit\n", "\n---\na: 1\n---\n", "---\n- 1\n---\n", "---\n---\n"]
)
def test_a_card_without_a_mapping_in_front_is_an_error(folder, text):
    (folder / "README.md").write_text(text)
    assert the_error(folder) == "README.md: does not open with a block of YAML, a mapping, between two lines of ---"


def test_a_card_of_another_system_is_read():
    assert read_header("---\r\nlicense: mit\r\ntags: [a]\r\n---\r\ntext") == {"license": "mit", "tags": ["a"]}
    assert read_header("---\nlicense: mit\n---") == {"license": "mit"}


@pytest.mark.parametrize(
    ("front", "message"),
    [
        ("license: !!python/object/apply:os.system ['touch {marker}']", "values of the kind .* are not taken"),
        ("license: !!python/name:os.system", "values of the kind .* are not taken"),
        ("a: &a [x]\nb: *a", "aliases are not taken"),
        ("a: &a {b: 1}\nc: {<<: *a}", "aliases are not taken"),
        ("license: mit\ntags: []\nlicense: cc-by-nc-4.0", "the key 'license' stands there twice"),
        ("? [a, b]\n: 1", "found unhashable key"),
        ("a: [", "did not find expected|while parsing"),
        ("a: \x07", "special characters are not allowed"),
        ("a: 1\n...\nb: 2", "expected '<document start>'"),
        ("a: 2020-99-99", "month must be in 1..12"),
        ("a: !!int ''", "index out of range"),
        ("a: !!bool maybe", "maybe"),
        ("a: !!omap [1]", "values of the kind .* are not taken"),
        ("a: 1" + ":1" * 400 + ".0", "too large"),
        ("a: 1" + ":1" * 400, "a number has more than 100 characters"),
        ("a: " + "9" * 5000, "a number has more than 100 characters"),
        ("a: " + "[" * 30_000, "it is nested more than 30 deep"),
        ("- " * 30_000, "it is nested more than 30 deep"),
        ("a: [" + "1," * 40_000 + "]", "must be of at most 65536 characters, got 80005"),
    ],
)
def test_yaml_that_asks_for_more_than_plain_values_is_refused(folder, tmp_path, front, message):
    write_front(folder, front.replace("{marker}", str(tmp_path / "marker")))
    with pytest.raises(InputError, match=message) as raised:
        read_header(read_card(folder))
    # However long what is wrong there is.
    assert len(str(raised.value)) < 300
    assert the_error(folder) == f"README.md: {raised.value}"
    assert not (tmp_path / "marker").exists()


def test_a_card_may_be_nested_as_deep_as_a_record():
    # The mapping and the value count too.
    assert read_header("---\na: " + "[" * 28 + "1" + "]" * 28 + "\n---\n")["a"]
    with pytest.raises(InputError, match="it is nested more than 30 deep"):
        read_header("---\na: " + "[" * 29 + "1" + "]" * 29 + "\n---\n")


def test_a_field_that_the_card_lacks_is_named(folder):
    recard(folder, pretty_name=None)
    assert the_error(folder) == "README.md: its YAML lacks pretty_name: render the card again"
    write_front(folder, "a: 1")
    expected = "its YAML lacks license, pretty_name, size_categories, task_categories, tags, configs: render the card"
    assert expected in errors(check_folder(folder))[1]


def config(*paths, name="default", **settings):
    return {"config_name": name, "data_files": [{"split": "train", "path": path} for path in paths], **settings}


NAMED = "its YAML must name the data files data/train-* alone, got "


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        (None, "its YAML has no default config"),
        ({"config_name": "default"}, "its YAML has no default config"),
        ([config("data/train-*", name="other")], "its YAML has no default config"),
        ([{"config_name": "default", "data_files": []}], f"{NAMED}[]"),
        ([config("data/train-*"), 5], f"{NAMED}None"),
        ([config(["data/train-*"] * 1000)], f"{NAMED}['data/train-*', "),
        ([config("/etc/*")], f"{NAMED}'/etc/*'"),
        ([config("data/../data/train-*")], f"{NAMED}'data/../data/train-*'"),
        ([config("https://example.org/train.parquet")], f"{NAMED}'https://example.org/train.parquet'"),
        ([config("data/train-*", "data/test-*")], f"{NAMED}'data/test-*'"),
        # It would be the one that is loaded.
        ([config("data/train-*"), config("x.parquet", name="b", default=True)], f"{NAMED}'x.parquet'"),
        ([config("*/" * 30_000)], f"{NAMED}'*/*/"),
    ],
)
def test_data_files_that_are_not_those_of_the_set_are_an_error(folder, configs, message):
    recard(folder, configs=configs)
    found = [error for error in errors(check_folder(folder)) if "lacks configs" not in error]
    assert len(found) == 1 and found[0].startswith(f"README.md: {message}") and len(found[0]) < 200


def test_a_token_in_the_card_is_an_error(folder):
    with (folder / "README.md").open("a") as card:
        card.write(f"\nlog in by {TOKEN}\n")
    assert the_error(folder) == "README.md: holds what looks like an access token: remove it, and revoke the token"


def test_the_data_files_may_be_named_without_their_split(folder):
    recard(folder, configs=[{"config_name": "default", "data_files": "data/train-*"}])
    assert check_folder(folder) == []


@pytest.mark.parametrize("name", ["data/train-extra.csv", "data/train-", "data/train-00000-of-00001.parquet/x"])
def test_a_file_that_would_be_loaded_with_the_set_is_an_error(folder, name):
    if name.endswith("/x"):
        (folder / PARQUET).rename(folder / "data" / "aside")
        (folder / PARQUET).mkdir()
    (folder / name).write_text("")
    assert f"{name}: would be loaded as a part of the set: remove it" in errors(check_folder(folder))


@pytest.mark.parametrize("part", ["source", "teacher"])
@pytest.mark.parametrize("strict", ["cc-by-nc-4.0", "CC-BY-NC-SA-4.0", "apple-amlr", "mit, cc-by-nc-2.0"])
def test_a_licence_freer_than_that_of_a_part_needs_a_reason(folder, part, strict):
    restate(folder, f"provenance.{part}.license", strict)
    assert the_error(folder).startswith(f"ssdd_hub.json: the {part} is under {strict}, which forbids commercial use")
    for reason in ("  ", ["yes"], None):
        restate(folder, "provenance.license_reason", reason)
        assert len(errors(check_folder(folder))) == 1
    restate(folder, "provenance.license_reason", "they wrote that we may")
    assert check_folder(folder) == []


@pytest.mark.parametrize("licence", [None, " UNKNOWN,"])
def test_an_unknown_licence_is_a_warning_whatever_the_parts(folder, licence):
    restate(folder, "provenance.license", licence)
    restate(folder, "provenance.source.license", "cc-by-nc-4.0")
    recard(folder, license="unknown")
    expected = "warning: ssdd_hub.json: the licence is unknown: state one if you may"
    assert [str(finding) for finding in check_folder(folder)] == [expected]


@pytest.mark.parametrize(
    ("recorded", "header", "level"),
    [
        ("cc-by-nc-4.0", {"license": "mit"}, "error"),
        ("cc-by-nc-4.0", {"license": 5}, "error"),
        ("cc-by-nc-4.0", {"license": ["mit"] * 9999}, "error"),
        # The Hub shows the name only of a licence that it does not know.
        ("cc-by-nc-4.0", {"license": "mit", "license_name": "cc-by-nc-4.0"}, "error"),
        ("cc-by-nc-4.0", {"license": "other", "license_name": "my-license"}, "error"),
        ("cc-by-nc-4.0", {"license": "cc-by-nc-sa-4.0"}, "warning"),
        ("cc-by-nc-4.0", {"license": "other", "license_name": "cc-by-nc-4.0"}, None),
        ("unknown", {"license": "mit"}, "warning"),
        ("gpl-3.0", {"license": "mit"}, "warning"),
        ("mit, apache-2.0", {"license": ["apache-2.0", "mit"]}, None),
        ("mit, apache-2.0", {"license": "mit"}, "warning"),
        ("My own!", {"license": "other", "license_name": "my-own"}, None),
    ],
)
def test_a_card_that_states_another_licence_than_the_record_is_found(folder, recorded, header, level):
    restate(folder, "provenance.license", recorded)
    recard(folder, **header)
    found = [finding for finding in check_folder(folder) if finding.place == "README.md"]
    assert [finding.level for finding in found] == ([level] if level else [])
    for finding in found:
        assert finding.text.endswith(f", and ssdd_hub.json {recorded}: render it again") and len(finding.text) < 200


def test_a_finding_is_one_line_that_cannot_steer_a_terminal(folder):
    steer = "\x1b[2J\r\x07\u202e\nerror: ssdd_hub.json: forged"
    (folder / "b\x1b[2J\nerror: forged.pkl").write_text("")
    restate(folder, "provenance.source.license", f"cc-by-nc-4.0 {steer}")
    recard(folder, license=f"mit{steer}", configs=[config(steer)])
    lines = [str(finding) for finding in check_folder(folder)]
    restate(folder, "pixel_space.mean", [steer, 0, 0])
    lines += [str(finding) for finding in check_folder(folder)]
    assert len(lines) == 6 and all(line.isprintable() and line.startswith(("error: ", "warning: ")) for line in lines)
    assert "error: b [2J error: forged.pkl: a file of this kind may run code when it is loaded: remove it" in lines


# Anything at all

VALUES = (None, 5, [], {}, "x", [[]], -1.5, True)


def places_in(value, path=()):
    """Returns the places of all parts of a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(*path, key), *places_in(value[key], (*path, key))]]


def is_needed(place, values):
    """Whether the record of a set is wrong with these values, or nothing, at a place."""
    if place[0] in ("label_names", "num_bytes") or place[-1] == "dtype":
        return False
    return place[0] != "provenance" or (len(place) == 1 and values != [{}])


@pytest.mark.parametrize("seed", range(3))
def test_a_record_with_any_part_destroyed_is_judged_and_never_breaks_the_linter(folder, seed):
    draw, whole, refused = random.Random(seed), record_of(folder), 0
    for _ in range(25):
        place, values = draw.choice(places_in(whole)), draw.choice([[], *([value] for value in VALUES)])
        restate(folder, place, *values, record=whole)
        found = check_folder(folder)
        wrong = errors(found)
        assert wrong or record_of(folder) == whole or not is_needed(place, values), (place, values)
        assert all(str(finding).isprintable() for finding in found)
        refused += bool(wrong)
        if not wrong:
            # What passes can be used and sent.
            DistilledSet.load(folder)
            pack_set(folder, "ann/set")
    assert 5 < refused < 25


@pytest.mark.parametrize("seed", range(3))
def test_a_card_with_any_bytes_changed_never_breaks_the_linter(folder, seed):
    draw, whole = random.Random(seed), (folder / "README.md").read_bytes()
    metadata, front = read_metadata(folder), whole.index(b"\n---\n", 4)
    for _ in range(60):
        start = draw.randrange(front)
        content = bytearray(whole)
        content[start : start + draw.randrange(4)] = draw.choice(
            [b"", b"!!int ", b"&a ", b"[", b"\x00", b"\xff", b"\n", b"0x"]
        )
        (folder / "README.md").write_bytes(content)
        try:
            found = check_card(metadata, read_card(folder))
        except InputError as error:
            assert "is no text in UTF-8" in str(error)
            continue
        assert all(finding.place == "README.md" for finding in found)
