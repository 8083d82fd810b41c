"""Small files that would take gigabytes, or time without end, are refused before either is taken."""

import json
import subprocess
import sys
import time
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from huggingface_hub import HfApi
from torch.utils.flop_counter import FlopCounterMode

from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record import MOST_BYTES, read_metadata
from ssdd_hub.sets.check import check_folder
from ssdd_hub.sets.check_places import check_place
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.interop import import_tensors
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.checkpoints import load_checkpoint
from ssdd_hub.teachers.teacher import build_teacher

SIDE, PIXELS = 16_000, PixelSpace.raw(1)
LIMITED = """
import resource, sys
from ssdd_hub.errors import InputError
from ssdd_hub.record import MOST_BYTES, read_metadata
from ssdd_hub.sets.check import check_folder
from ssdd_hub.sets.check_places import check_place
from ssdd_hub.sets.distilled import DistilledSet

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for use in (DistilledSet.load, check_folder):
    try:
        print(use(sys.argv[1]))
    except InputError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def large_image(folder, side=SIDE):
    """A set of one black image of this side, in some kilobytes."""
    made = DistilledSet(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2), PIXELS)
    made.save(folder)
    path = folder / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    zeros = pa.array(np.zeros(side * side, np.float32))
    for _ in range(2):
        zeros = pa.ListArray.from_arrays(np.arange(0, len(zeros) + 1, side, dtype=np.int32), zeros)
    pixels = pa.ListArray.from_arrays(np.array([0, 1], np.int32), zeros)
    columns = {name: pixels if name == "pixels" else table[name] for name in table.column_names}
    pq.write_table(pa.table(columns), path, compression="zstd")
    record = json.loads((folder / "ssdd_hub.json").read_text())
    record["tensors"]["images"]["shape"] = [1, 1, side, side]
    (folder / "ssdd_hub.json").write_text(json.dumps(record))
    return folder


def network():
    return timm.create_model("ssdd_convnet3", num_classes=0, widths=(4, 4, 4), in_chans=1, img_size=8)


def within(seconds, call, match):
    started = time.monotonic()
    with pytest.raises(InputError, match=match):
        call()
    assert time.monotonic() - started < seconds


def compress(path):
    """Packs a file of `torch.save` again, as small as it can be."""
    with zipfile.ZipFile(path) as archive:
        files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.slow
def test_an_image_of_thousands_of_pixels_is_refused_unread(tmp_path):
    folder = large_image(tmp_path / "set")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 200_000
    ran = subprocess.run([sys.executable, "-c", LIMITED, folder], capture_output=True, text=True, check=True)
    loaded, checked, mebibytes = ran.stdout.splitlines()
    for line in (loaded, checked):
        assert "take 0.95 GiB, 0.95 of them an image" in line and "SSDD_HUB_MAX_SET_GIB" in line
    assert int(mebibytes) < 300


def test_the_limit_of_a_set_can_be_raised_and_lowered(tmp_path, monkeypatch):
    folder = large_image(tmp_path / "set", 64)
    monkeypatch.setenv("SSDD_HUB_MAX_SET_GIB", "1e-6")
    with pytest.raises(InputError, match="at most 1e-06 and .* are read: if you trust the set"):
        DistilledSet.load(folder)
    assert any("SSDD_HUB_MAX_SET_GIB" in finding.text for finding in check_folder(folder))
    monkeypatch.setenv("SSDD_HUB_MAX_SET_GIB", "0.1")
    with pytest.raises(InputError, match="sha256 differs"):
        DistilledSet.load(folder)
    for wrong in ("much", "nan"):
        monkeypatch.setenv("SSDD_HUB_MAX_SET_GIB", wrong)
        with pytest.raises(InputError, match="SSDD_HUB_MAX_SET_GIB"):
            DistilledSet.load(folder)


@pytest.mark.parametrize("name", ["state_dict", "model"])
def test_a_checkpoint_that_holds_itself_ends(tmp_path, name):
    loop = {}
    loop[name] = {"model": loop}
    torch.save(loop, tmp_path / "loop.pt")
    within(5, lambda: load_checkpoint(network(), tmp_path / "loop.pt"), "holds mappings more than 8 deep")


def test_names_of_any_number_of_parts_take_no_time(tmp_path):
    weights = network().state_dict()
    others = {"." * 20_000: torch.zeros(1), "a." * 20_000: torch.zeros(1)}
    others |= {f"net{index}.a.b.c.d.e": torch.zeros(1) for index in range(5_000)}
    torch.save({**others, **{f"backbone.{name}": value for name, value in weights.items()}}, tmp_path / "many.pt")
    started = time.monotonic()
    report = load_checkpoint(network(), tmp_path / "many.pt")
    assert time.monotonic() - started < 10
    assert (report.prefix, report.loaded) == ("backbone.", len(weights))
    # It becomes part of a record.
    assert len(report.ignored) <= 100
    torch.save(others, tmp_path / "none.pt")
    with pytest.raises(InputError, match="holds no network like this backbone") as caught:
        load_checkpoint(network(), tmp_path / "none.pt")
    assert len(str(caught.value)) < 1500


def test_a_compressed_file_is_refused_packed(tmp_path):
    torch.save({**network().state_dict(), "x": torch.zeros(2**25)}, tmp_path / "bomb.pt")
    compress(tmp_path / "bomb.pt")
    assert (tmp_path / "bomb.pt").stat().st_size < 2**20
    within(5, lambda: load_checkpoint(network(), tmp_path / "bomb.pt"), "is compressed: it has .* and unpacks to 1")
    torch.save(torch.zeros(2**15, 1, 32, 32), tmp_path / "x_syn.pt")
    torch.save(torch.zeros(2**15, 2), tmp_path / "y_syn.pt")
    compress(tmp_path / "x_syn.pt")
    within(5, lambda: import_tensors(tmp_path), "is compressed: it has .* and unpacks to 1")


def test_a_view_that_repeats_a_number_is_refused(tmp_path):
    torch.save(torch.zeros(1, 1, 1, 1).expand(2**18, 1, 32, 32), tmp_path / "x_syn.pt")
    torch.save(torch.zeros(1, 1).expand(2**18, 2), tmp_path / "y_syn.pt")
    within(5, lambda: import_tensors(tmp_path), "are a view that repeats 4 bytes")


@pytest.mark.parametrize("compressed", [False, True])
def test_small_files_are_read_whatever_they_are(tmp_path, compressed):
    torch.save({"state_dict": network().state_dict()}, tmp_path / "small.pt")
    if compressed:
        compress(tmp_path / "small.pt")
    assert load_checkpoint(network(), tmp_path / "small.pt").prefix == ""


def test_weights_beside_a_configuration_are_not_compressed(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "ssdd_convnet3", "pretrained_cfg": {}}')
    torch.save({"x": torch.zeros(2**25)}, tmp_path / "pytorch_model.bin")
    compress(tmp_path / "pytorch_model.bin")
    within(5, lambda: build_teacher(f"local-dir:{tmp_path}"), "is compressed: it has .* and unpacks to 1")


def save_tiny_parts(path):
    """Some megabytes of safetensors that hold 40,000 tensors without a value."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"k{number}": empty for number in range(40_000)}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def test_a_list_of_any_number_of_tensors_is_not_read(tmp_path):
    match = "its list of tensors, must be of at most 2,097,152 bytes; it states"
    save_tiny_parts(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "ssdd_convnet3", "pretrained_cfg": {}}')
    within(5, lambda: build_teacher(f"local-dir:{tmp_path}"), match)
    within(5, lambda: load_checkpoint(network(), tmp_path / "model.safetensors"), match)
    within(5, lambda: TargetTransform.load(tmp_path / "model.safetensors"), match)
    record = {"format_version": 1, "teacher": {"name": "x", "weights_sha256": "0" * 64}, "provenance": {}}
    (tmp_path / "ssdd_hub.json").write_text(json.dumps(record))
    assert any(match in finding.text for finding in check_place(tmp_path))


def test_a_transform_is_of_the_size_of_the_targets(tmp_path):
    made = DistilledSet(torch.zeros(2, 1, 8, 8), torch.zeros(2, 2), PIXELS)
    made.target_transform = TargetTransform.fit("standardise", torch.randn(9, 2))
    made.save(tmp_path / "set")
    with (tmp_path / "set" / "target_transform.safetensors").open("r+b") as file:
        file.truncate(2**28)
    within(
        5, lambda: DistilledSet.load(tmp_path / "set"), "not a whole target transform .it has more than 589824 bytes"
    )


def test_a_projection_is_checked_in_the_time_that_it_takes_to_read(tmp_path):
    size = 300
    parts = {"mean": torch.zeros(size), "scale": torch.ones(size), "components": torch.eye(size)}
    made = TargetTransform("pca", **{name: tensor.double() for name, tensor in parts.items()})
    made.save(tmp_path / "sound.safetensors")
    with FlopCounterMode(display=False) as counter:
        TargetTransform.load(tmp_path / "sound.safetensors")
    assert counter.get_total_flops() < 100 * size**2
    made.components[7, 7] = 1.01
    made.save(tmp_path / "wrong.safetensors")
    with pytest.raises(InputError, match="its components are not orthonormal"):
        TargetTransform.load(tmp_path / "wrong.safetensors")


def test_compressed_weights_of_a_repository_are_refused_packed(hub, tmp_path):
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "ssdd_convnet3", "pretrained_cfg": {}}')
    torch.save({"x": torch.zeros(2**25)}, folder / "pytorch_model.bin")
    compress(folder / "pytorch_model.bin")
    api = HfApi(token="hf_ann")
    api.create_repo("ann/teacher")
    api.upload_folder(repo_id="ann/teacher", folder_path=folder)
    within(10, lambda: build_teacher("hf-hub:ann/teacher"), "is compressed: it has .* and unpacks to 1")
    (folder / "pytorch_model.bin").unlink()
    save_tiny_parts(folder / "model.safetensors")
    api.upload_folder(repo_id="ann/teacher", folder_path=folder)
    within(10, lambda: build_teacher("hf-hub:ann/teacher"), "its list of tensors, must be of at most")


@pytest.mark.parametrize("field", [{"method": "`" * 2_000_000}, {"scores": [{"mean": 1.0}] * 20_000}])
def test_a_record_that_takes_a_card_long_is_refused_by_its_field(tmp_path, field):
    folder = DistilledSet(torch.zeros(2, 1, 8, 8), torch.zeros(2, 2), PIXELS).save(tmp_path / "set")
    record = json.loads((folder / "ssdd_hub.json").read_text())
    record["provenance"] |= field
    (folder / "ssdd_hub.json").write_text(json.dumps(record))
    assert (folder / "ssdd_hub.json").stat().st_size < MOST_BYTES
    within(5, lambda: read_metadata(folder), f"provenance.{next(iter(field))} must be .*of at most 10+.*, got 20+")
    started = time.monotonic()
    assert [finding for finding in check_folder(folder) if next(iter(field)) in finding.text]
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("args", [{"depth": 10**6}, {"depths": [1, 2000]}, {"layers": [10**5, 1]}])
def test_a_depth_is_refused_before_anything_is_built(args):
    within(1, lambda: build_teacher("vit_tiny_patch16_224", pretrained=False, **args), "must be .* at most 1000, got")


def rewrite(folder, name, values):
    """Puts another list of numbers in the place of a column's only row."""
    path = next((folder / "data").iterdir())
    table = pq.read_table(path)
    lists = values
    for _ in range({"pixels": 3, "target": 1}[name]):
        lists = pa.ListArray.from_arrays(np.array([0, len(lists)], np.int32), lists)
    pq.write_table(pa.table({each: lists if each == name else table[each] for each in table.column_names}), path)


@pytest.mark.parametrize("name", ["pixels", "target"])
def test_a_row_of_millions_of_numbers_is_refused_undecoded(tmp_path, name, monkeypatch):
    folder = DistilledSet(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2), PIXELS).save(tmp_path / "set")
    rewrite(folder, name, pa.array(np.zeros(20_000_000, np.float32)))
    assert next((folder / "data").iterdir()).stat().st_size < 100_000
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *given, **how: pytest.fail("it was decoded"))
    within(5, lambda: DistilledSet.load(folder), f"column '{name}' does not hold .* of the stated shape")
    assert any("of the stated shape" in finding.text for finding in check_folder(folder))
