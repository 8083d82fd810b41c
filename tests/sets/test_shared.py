"""Sets of shared images, and of few bits: what they store comes back bit for bit, and hostile files are refused."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hub_server import client_env
from safetensors.torch import load_file, save_file
from test_distilled import contents
from test_storage import follow_the_card, make_set, same, written, zstd

from ssdd_hub import InputError
from ssdd_hub.calls import _store_set
from ssdd_hub.cli import main
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations import build_parameterisation
from ssdd_hub.record import read_metadata
from ssdd_hub.sets.check import check_folder
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.storage import StorageSettings, pack
from ssdd_hub.text import show_bytes

FORMS = {
    "bases": ("bases", {"bases": 3}, StorageSettings()),
    "bases of targets": ("bases", {"bases": 3, "target_bases": 2, "factor": 2}, StorageSettings()),
    "bases in 8 bits": ("bases", {"bases": 4, "step": 0.15, "target_step": 0.25}, StorageSettings("uint8", "int8")),
    "bases in 3 bits": ("quantised", {"of": "bases", "bits": 3, "target_bits": 5}, StorageSettings()),
    "tiles in 4 bits": ("quantised", {"target_bits": 8}, StorageSettings()),
    "pixels in 2 bits": ("quantised", {"of": "pixels", "bits": 2, "range": "fixed", "per": "set"}, StorageSettings()),
    "frequencies in 8 bits": ("quantised", {"of": "dct", "of_args": {"step": 0}, "bits": 8}, StorageSettings()),
}


def make(form="bases", channels=3):
    name, args, storage = FORMS[form]
    whole = make_set(channels)
    learned = build_parameterisation(name, Pairs(whole.images, whole.targets), args)
    return learned, DistilledSet.of(pack(learned, whole.pixel_space, storage))


@pytest.mark.parametrize(("form", "channels"), [*((form, 3) for form in FORMS), ("bases in 3 bits", 1)])
def test_a_set_comes_back_bit_for_bit_by_every_way_and_is_what_was_learned(tmp_path, monkeypatch, form, channels):
    learned, made = make(form, channels)
    shown = learned()
    if form != "bases in 8 bits":  # which are rounded where they are stored
        torch.testing.assert_close(made.images, shown.images.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(made.targets, shown.targets.detach(), rtol=0, atol=1e-5)
    folder = made.save(tmp_path / "first" / "set")
    loaded = DistilledSet.load(folder)
    same(loaded, made)
    assert not [finding for finding in check_folder(folder) if finding.level == "error"]
    loaded.save(tmp_path / "again" / "set")
    assert contents(tmp_path / "again" / "set") == contents(folder)
    follow_the_card(made, tmp_path, monkeypatch)
    stored, place = made.packed.tensors, str(tmp_path / "set")
    table = datasets.load_dataset(place, split="train", cache_dir=str(tmp_path / "cache"))
    for rows in (table, list(datasets.load_dataset(place, split="train", streaming=True))):
        if "images" in stored:
            found = np.stack([np.array(row["image"]) for row in rows]).transpose(0, 3, 1, 2)
            assert np.array_equal(found, stored["images"].numpy())
        else:
            assert [row["coefficients"] for row in rows] == written(stored["coefficients"])
        assert [row["target"] for row in rows] == written(stored["targets"])


@pytest.fixture
def published(hub):
    made = make("bases in 3 bits")[1]
    made.push_to_hub("ann/few", token="hf_ann")
    return made


def test_a_set_goes_to_the_hub_and_comes_back_bit_for_bit(published):
    same(DistilledSet.from_pretrained("ann/few"), published)


@pytest.mark.slow
def test_the_code_of_the_card_on_the_hub_gives_the_same(hub, published, tmp_path):
    plain = re.findall(r"```python\n(.*?)```", hub.files("ann/few")["README.md"].decode(), re.DOTALL)[1]
    assert "shared.safetensors" in hub.files("ann/few")
    code = f"""{plain}
import hashlib
from ssdd_hub import DistilledSet
loaded = DistilledSet.from_pretrained("ann/few")
assert (loaded.images - images).abs().max() < 1e-5 and (loaded.targets - targets).abs().max() < 1e-5
print(hashlib.sha256(loaded.images.numpy().tobytes() + loaded.targets.numpy().tobytes()).hexdigest())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=client_env(hub, tmp_path / "reader"), capture_output=True, text=True
    )
    expected = hashlib.sha256(published.images.numpy().tobytes() + published.targets.numpy().tobytes()).hexdigest()
    assert done.stdout.split() == [expected], done.stderr


@pytest.mark.parametrize(("bits", "spread"), [(2, 85), (3, 36), (4, 17), (5, 8), (8, 1)])
def test_pictures_of_few_bits_are_numbers_spread_over_all_that_a_viewer_shows(tmp_path, bits, spread):
    whole = make_set()
    learned = build_parameterisation("quantised", Pairs(whole.images, whole.targets), {"bits": bits})
    made = DistilledSet.of(pack(learned, whole.pixel_space, StorageSettings()))
    stored = made.packed.tensors["images"]
    assert not (stored % spread).any() and stored.max() == spread * (2**bits - 1)
    # Their files are packed all at once, others one by one.
    rows = datasets.load_dataset(str(made.save(tmp_path / "set")), split="train", streaming=True).decode(False)
    files = [row["image"]["bytes"] for row in rows]
    packed = pa.Codec("zstd", 19).compress(b"".join(files), asbytes=True)
    assert made.num_bytes()["images"] == (sum(map(len, files)) if bits == 8 else len(packed))


def test_bytes_of_shared_images_count_as_the_decoders_and_are_shown(tmp_path, capsys):
    for form, expected in (("bases", 4 * 4 * 3 * 64), ("bases in 8 bits", None)):
        _, made = make(form)
        packed = made.packed
        if expected is None:
            expected = len(zstd(packed.decoder.shared["bases"])) + 4 * 2 * 3  # the levels of three tensors
        sizes = made.num_bytes()
        assert sizes["decoder"] == expected
        folder = made.save(tmp_path / form)
        files = [folder / "shared.safetensors", *(folder / "data").iterdir()]
        assert read_metadata(folder)["num_bytes"] == {**sizes, "file": sum(path.stat().st_size for path in files)}
        main(["show", str(folder)])
        assert f"decoder {show_bytes(expected)}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a set, to be copied."""
    return make("bases in 8 bits")[1].save(tmp_path_factory.mktemp("saved") / "set")


def changed(folder, place, value):
    record = json.loads((folder / "ssdd_hub.json").read_text())
    part = record
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (folder / "ssdd_hub.json").write_text(json.dumps(record))


SHARED = ("storage", "shared")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (SHARED, None, "storage.shared of bases must state bases; got none"),
        (SHARED, [1], "storage.shared must be stated by name"),
        (
            (*SHARED, "more"),
            {"shape": [1], "sha256": "0" * 64},
            "storage.shared: only bases, target_bases, shift_hidden, shift_output can be stated; got more",
        ),
        ((*SHARED, "bases", "shape"), [5, 3, 8], "storage.shared.bases.shape must be 4 sizes"),
        ((*SHARED, "bases", "shape"), [5, 3, 8, 10**9], "at most 67108864"),
        ((*SHARED, "bases", "shape"), [6, 3, 8, 8], "one coefficient for each of the 6 bases; got 5"),
        ((*SHARED, "bases", "shape"), [5, 3, 8, 9], "is not what the record states"),
        ((*SHARED, "bases", "dtype"), "int64", "storage.shared.bases.dtype must be float32 or int8"),
        ((*SHARED, "bases", "dtype"), "float32", "of torch.uint8, not (5, 3, 8, 8) of torch.float32"),
        ((*SHARED, "bases", "sha256"), "0" * 64, "the bases are not those that were saved, their sha256 differs"),
        (("storage", "bases"), None, "scale and offset of bases must be stated"),
        (("storage", "bases", "scale"), [1.0, 1.0], "storage.bases must state 1 scale"),
        (("storage", "parameterisation", "args"), {"step": "wide"}, "step must be a finite number"),
        (("storage", "parameterisation", "name"), "dct", "storage.shared of dct must state none; got bases"),
    ],
)
def test_a_record_of_shared_images_that_is_wrong_is_refused(saved, tmp_path, place, value, message):
    folder = shutil.copytree(saved, tmp_path / "set")
    changed(folder, place, value)
    with pytest.raises(InputError) as refused:
        DistilledSet.load(folder)
    found = [str(finding) for finding in check_folder(folder) if finding.level == "error"]
    assert message in str(refused.value)
    assert any(message in finding for finding in found)


def bomb(path, bases):
    return {"bases": torch.frombuffer(bytearray(zstd(torch.zeros(2**26, dtype=torch.int8))), dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (lambda path, bases: path.unlink(), "No such file"),
        (lambda path, bases: path.write_bytes(b"{}" * 20), "is not what the record states|must be of at most"),
        (lambda path, bases: save_file({"more": bases}, path), "it must hold bases alone"),
        (lambda path, bases: save_file({"bases": bases.float()}, path), "bases is not compressed"),
        (lambda path, bases: save_file({"bases": bases[:-3].clone()}, path), "is not what the record states"),
        (lambda path, bases: save_file({"bases": torch.zeros(10**6, dtype=torch.uint8)}, path), "it has more than"),
        (lambda path, bases: save_file(bomb(path, bases), path), "is not what the record states"),
    ],
)
def test_a_file_of_shared_images_that_is_not_the_stated_one_is_refused(saved, tmp_path, put, message):
    folder = shutil.copytree(saved, tmp_path / "set")
    path = folder / "shared.safetensors"
    put(path, load_file(path)["bases"])
    with pytest.raises(InputError, match=message):
        DistilledSet.load(folder)
    assert any(re.search(message, str(finding)) for finding in check_folder(folder) if finding.level == "error")


def test_a_file_that_no_record_states_is_named(tmp_path):
    made = make_set()
    folder = made.save(tmp_path / "set")
    save_file({"bases": torch.zeros(3)}, folder / "shared.safetensors")
    assert "shared.safetensors: is there, and the record states none: remove it" in map(
        lambda finding: str(finding).removeprefix("error: "), check_folder(folder)
    )
    made.save(folder)
    assert not (folder / "shared.safetensors").exists()


def test_a_set_whose_shared_images_were_changed_is_another_set(tmp_path):
    _, made = make()
    decoder = made.packed.decoder
    packed = made.packed._replace(decoder=replace(decoder, shared={"bases": decoder.shared["bases"] + 1}))
    with pytest.raises(InputError, match="the images of a compact set are not those that it stores"):
        replace(made, packed=packed).save(tmp_path / "set")
    # Nor is it what lies in the folder that it came from.
    other = DistilledSet.of(packed)
    other.folder = made.save(tmp_path / "set")
    assert _store_set(made, tmp_path / "run") == str(made.folder)
    place = _store_set(other, tmp_path / "run")
    assert place != str(made.folder)
    same(DistilledSet.load(place), other)
