import hashlib
import json
import os
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.sets import layouts
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.interop import METADATA_FILE, export_tensors, import_tensors, is_foreign
from ssdd_hub.sets.layouts import LAYOUTS
from ssdd_hub.targets.transform import TargetTransform

RGB = PixelSpace((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
FILES = {
    "krr-st": ["x_syn.pt", "y_syn.pt"],
    "mkdt": ["images_1000.pt", "labels_1000.pt"],
    "dd-ranking": ["images.pt", "labels.pt"],
}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_set(size=6, channels=3, **parts):
    images = numbers(size, channels, 4, 5)
    # Values that a careless route changes: negative zero, a denormal, the largest number.
    images[0, 0, 0, :3] = torch.tensor([-0.0, 1e-45, torch.finfo(torch.float32).max])
    space = RGB if channels == 3 else PixelSpace((0.3,), (2.0,))
    return DistilledSet(images, numbers(size, 7, seed=1), space, **parts)


def write_pair(folder, images=None, targets=None, names=FILES["krr-st"]):
    folder.mkdir(exist_ok=True)
    torch.save(torch.rand(4, 3, 5, 5) if images is None else images, folder / names[0])
    torch.save(numbers(4, 7) if targets is None else targets, folder / names[1])
    return folder


def stand_in_for_a_set(folder):
    """What saving would leave to be recognised by, without the seconds that importing `datasets` takes."""
    (folder / "data").mkdir(parents=True)
    (folder / "ssdd_hub.json").write_text("{}")
    return folder


def same_bits(one, other):
    return one.shape == other.shape and torch.equal(one.contiguous().view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_what_is_exported_comes_back_bit_for_bit(tmp_path, layout, channels):
    transform = TargetTransform.fit("pca", numbers(30, 9, seed=2), 7)
    labels, names = torch.tensor([0, 0, 0, 1, 1, 1]), ["cat", "über"]
    provenance = {"method": "krr-st", "student_pixel_space": PixelSpace.raw(channels).to_dict(), "seed": 3}
    parts = {"labels": labels, "label_names": names, "provenance": provenance, "target_transform": transform}
    made = make_set(channels=channels, **parts)
    folder = export_tensors(made, tmp_path / "deep" / "pair", layout)
    assert {entry.name for entry in folder.iterdir()} == {
        *(*FILES[layout], METADATA_FILE, "target_transform.safetensors")
    }
    for path in (folder, *(folder / name for name in FILES[layout])):
        got = import_tensors(path)
        assert same_bits(got.images, made.images) and same_bits(got.targets, made.targets)
        assert got.pixel_space == made.pixel_space
        assert torch.equal(got.labels, labels) and got.label_names == names
        assert torch.equal(got.target_transform.inverse(got.targets), transform.inverse(made.targets))
        record = got.provenance.pop("import")
        assert got.provenance == made.provenance
        digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES[layout]}
        assert (record["files"], record["layout"], record["conversions"]) == (digests, layout, [])
        assert record["pixel_space"] == f"stated in {METADATA_FILE}"


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_loaders_of_the_other_codes_read_the_files(tmp_path, layout):
    made = make_set()
    # A view, of which only its own values are to be written.
    made.images = numbers(1000, 3, 4, 5).transpose(2, 3)[:6].requires_grad_()
    folder = export_tensors(made, tmp_path / "pair", layout)
    # What evaluation does in each of them: load, pair them up, take the width of the targets from their shape.
    images, targets = (torch.load(folder / name, map_location="cpu", weights_only=True) for name in FILES[layout])
    assert torch.equal(images, made.images) and torch.equal(targets, made.targets)
    for tensor in (images, targets):
        assert type(tensor) is torch.Tensor and not tensor.requires_grad and tensor.is_contiguous()
        assert tensor.dtype == torch.float32
    assert len(torch.utils.data.TensorDataset(images, targets)) == 6 and targets.shape[-1] == 7
    assert (folder / FILES[layout][0]).stat().st_size < 6000


def test_the_json_states_space_ranges_shapes_and_digests(tmp_path):
    images = torch.tensor([-0.5, 0.25, 1.0, 1.5]).reshape(1, 1, 2, 2)
    folder = export_tensors(DistilledSet(images, torch.ones(1, 2), PixelSpace((0.5,), (2.0,))), tmp_path / "pair")
    stated = json.loads((folder / METADATA_FILE).read_text())
    assert stated["pixel_space"] == {"mean": [0.5], "std": [2.0]} and stated["clip_fraction"] == 0.75
    assert stated["value_range"] == [-0.5, 1.5] and stated["pixel_range"] == [-0.5, 3.5]
    sha256 = hashlib.sha256(images.numpy().astype("<f4").tobytes()).hexdigest()
    described = {"file": "x_syn.pt", "shape": [1, 1, 2, 2], "dtype": "float32", "sha256": sha256}
    assert stated["tensors"]["images"] == described
    got = import_tensors(folder)
    assert got.labels is got.label_names is got.target_transform is None and set(got.provenance) == {"import"}


def test_views_are_left_out_and_the_json_says_so(tmp_path):
    views = {"views": torch.zeros(6, 2, 3, dtype=torch.int64), "view_targets": numbers(6, 2, 7)}
    for name, parts, left_out in (("with", views, list(views)), ("without", {}, [])):
        folder = export_tensors(make_set(**parts), tmp_path / name)
        assert json.loads((folder / METADATA_FILE).read_text())["left_out"] == left_out
        assert import_tensors(folder).views is None


def test_images_are_converted_to_another_space(tmp_path):
    pixels = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    space = LAYOUTS["dd-ranking"].real_spaces["cifar10"]
    folder = export_tensors(DistilledSet(RGB.normalise(pixels), torch.ones(4, 2), RGB), tmp_path / "a", space=space)
    got = import_tensors(folder)
    assert got.pixel_space == space
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
    expected = (pixels.permute(0, 2, 3, 1) - mean) / std
    torch.testing.assert_close(got.images.permute(0, 2, 3, 1), expected, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="the space must have the images' 3 channels, got 1"):
        export_tensors(got, tmp_path / "b", space=PixelSpace.raw(1))
    with pytest.raises(InputError, match="beyond float32"):
        large = DistilledSet(torch.full((2, 3, 4, 4), 1e35), torch.ones(2, 2), RGB)
        export_tensors(large, tmp_path / "b", space=PixelSpace((0.5,) * 3, (1e-6,) * 3))
    assert not (tmp_path / "b").exists()


def test_nothing_is_overwritten(tmp_path):
    made = make_set()
    saved = stand_in_for_a_set(tmp_path / "set")
    (tmp_path / "todo.txt").write_text("mine")
    exported = export_tensors(made, tmp_path / "pair")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for taken in (saved, tmp_path, tmp_path / "todo.txt", exported):
        with pytest.raises(InputError, match="is taken, and exporting overwrites nothing"):
            export_tensors(made, taken)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "empty").mkdir()
    assert is_foreign(export_tensors(made, tmp_path / "empty"))


def test_a_set_that_became_nan_is_not_exported(tmp_path):
    made = make_set()
    made.targets[0, 0] = float("nan")
    with pytest.raises(InputError, match="targets hold NaN"):
        export_tensors(made, tmp_path / "pair")


def test_dd_ranking_gets_images_in_the_order_of_their_classes(tmp_path):
    for labels in ([0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1], [-1] * 6, [1, 1, 1, 0, 0, 0], [2**62] * 6):
        with pytest.raises(InputError, match="sorted by class, the same number of each"):
            export_tensors(make_set(labels=torch.tensor(labels)), tmp_path / "pair", "dd-ranking")
    export_tensors(make_set(labels=torch.tensor([0, 0, 1, 1, 2, 2])), tmp_path / "pair", "dd-ranking")


def test_a_pair_is_told_from_a_set_and_from_other_things(tmp_path):
    pair = write_pair(tmp_path / "pair")
    assert is_foreign(pair) and is_foreign(str(pair)) and is_foreign(pair / "x_syn.pt")
    both = stand_in_for_a_set(tmp_path / "set")
    assert not is_foreign(both)
    write_pair(both)  # a set stays a set, whatever lies in its folder
    assert not is_foreign(both)
    (pair / "y_syn.pt").unlink()
    assert not is_foreign(pair)
    assert not is_foreign("me/tiny") and not is_foreign(tmp_path / "absent.pt") and not is_foreign(tmp_path)
    (pair / "y_syn.pt").mkdir()
    assert not is_foreign(pair)


def test_the_released_krr_st_format_is_read_as_raw_pixels(tmp_path):
    images, targets = torch.rand(4, 3, 5, 5).requires_grad_(), numbers(4, 7).requires_grad_()
    folder = write_pair(tmp_path / "krr_st", images, targets)
    space = LAYOUTS["krr-st"].real_spaces["cifar100"]
    got = import_tensors(folder, student_pixel_space=space, labels=torch.arange(4), label_names=list("abcd"))
    assert torch.equal(got.images, images.detach()) and torch.equal(got.targets, targets.detach())
    assert not got.images.requires_grad and got.pixel_space == PixelSpace.raw(3)
    assert got.provenance["method"] == "krr-st"
    assert got.provenance["student_pixel_space"] == {"mean": list(space.mean), "std": list(space.std)}
    record = got.provenance["import"]
    assert record["pixel_space"].startswith("assumed: raw pixels in [0, 1]")
    assert record["value_range"] == [images.min().item(), images.max().item()]
    assert got.labels.tolist() == [0, 1, 2, 3] and got.label_names == list("abcd")
    given = import_tensors(folder, pixel_space=RGB, method="frepo")
    assert given.pixel_space == RGB and given.provenance["method"] == "frepo"
    assert given.provenance["import"]["pixel_space"] == "given by the caller"
    assert "student_pixel_space" not in given.provenance


def test_the_highest_step_of_mkdt_is_read_with_its_learning_rate(tmp_path):
    folder = tmp_path / "run"
    for step in ("1", "900", "1000", "best"):
        write_pair(folder, targets=numbers(4, 7, seed=len(step)), names=[f"images_{step}.pt", f"labels_{step}.pt"])
    torch.save(torch.rand(4, 3, 5, 5), folder / "images_5000.pt")  # its labels are missing
    torch.save(torch.tensor(0.25).requires_grad_(), folder / "synlr_1000.pt")
    (folder / "hparams.txt").write_text("{}")
    with pytest.raises(InputError, match=r"do not state the pixel space.*cifar100 mean \(0.5071, .*tinyimagenet"):
        import_tensors(folder)
    got = import_tensors(folder, pixel_space=LAYOUTS["mkdt"].real_spaces["cifar100"])
    assert torch.equal(got.targets, numbers(4, 7, seed=4))
    assert got.provenance["method"] == "mkdt" and got.provenance["import"]["learning_rate"] == 0.25
    assert sorted(got.provenance["import"]["files"]) == ["images_1000.pt", "labels_1000.pt", "synlr_1000.pt"]
    got = import_tensors(folder / "labels_900.pt", pixel_space=RGB)
    assert torch.equal(got.targets, numbers(4, 7, seed=3)) and "learning_rate" not in got.provenance["import"]
    torch.save(torch.tensor([0.1, 0.2]), folder / "synlr_1000.pt")
    with pytest.raises(InputError, match=r"synlr_1000.pt must hold one learning rate above 0"):
        import_tensors(folder, pixel_space=RGB)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32_and_it_is_recorded(tmp_path, dtype):
    images = torch.rand(4, 3, 5, 5, dtype=torch.float64).to(dtype)
    got = import_tensors(write_pair(tmp_path / "pair", nn.Parameter(images), numbers(7, 4).T))
    assert torch.equal(got.images, images.float()) and got.images.is_contiguous()
    assert torch.equal(got.targets, numbers(7, 4).T) and got.targets.is_contiguous()
    assert got.provenance["import"]["conversions"] == [f"images from {str(dtype)[6:]} to float32"]


def test_tensors_are_taken_out_of_lists_and_dictionaries(tmp_path):
    images, targets = torch.rand(4, 3, 5, 5), numbers(4, 7)
    wrapped = write_pair(tmp_path / "a", {"x_syn": images, "step": 3}, [targets])
    old, lone = write_pair(tmp_path / "old"), tmp_path / "set.pt"
    for name, tensor in (("x_syn.pt", images), ("y_syn.pt", targets)):
        torch.save(tensor, old / name, _use_new_zipfile_serialization=False)
    for content in ({"images": images, "labels": targets}, [images, targets], (images, targets)):
        torch.save(content, lone)
        for path, layout in ((lone, "krr-st"), (wrapped, "auto"), (old, "auto")):
            got = import_tensors(path, layout=layout)
            assert torch.equal(got.images, images) and torch.equal(got.targets, targets)
        with pytest.raises(InputError, match="a file of both tensors needs its layout too"):
            import_tensors(lone)
    assert list(import_tensors(lone, layout="krr-st").provenance["import"]["files"]) == ["set.pt"]


def test_class_labels_become_labels_once_there_are_targets(tmp_path):
    folder = write_pair(tmp_path / "dm", targets=torch.tensor([3, 1, 0, 2], dtype=torch.int32))
    with pytest.raises(InputError, match=r"y_syn.pt holds class labels, and a set needs targets \(M, D\).*targets="):
        import_tensors(folder)
    got = import_tensors(folder, targets=numbers(4, 7))
    assert got.labels.dtype == torch.int64 and got.labels.tolist() == [3, 1, 0, 2]
    assert torch.equal(got.targets, numbers(4, 7))
    with pytest.raises(InputError, match="and no labels="):
        import_tensors(folder, targets=numbers(4, 7), labels=torch.arange(4))
    with pytest.raises(InputError, match="holds targets already"):
        import_tensors(write_pair(tmp_path / "krr_st"), targets=numbers(4, 7))


def test_several_layouts_in_a_folder_need_a_choice(tmp_path):
    folder = write_pair(write_pair(tmp_path / "pair"), targets=numbers(4, 9), names=FILES["dd-ranking"])
    with pytest.raises(InputError, match="exactly one pair of files .*, found 2"):
        import_tensors(folder)
    got = import_tensors(folder, layout="dd-ranking", pixel_space=RGB)
    assert got.targets.shape == (4, 9) and got.provenance["method"] == "unknown"
    assert import_tensors(folder / "y_syn.pt").targets.shape == (4, 7)
    with pytest.raises(InputError, match="found 0"):
        import_tensors(folder, layout="mkdt")
    for call in (import_tensors, partial(export_tensors, make_set())):
        with pytest.raises(InputError, match="must be one of krr-st, mkdt, dd-ranking, got 'mtt'"):
            call(folder, layout="mtt")
    with pytest.raises(InputError, match="there is neither a folder nor a file"):
        import_tensors(tmp_path / "absent")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path, zipped):
    folder, trap = write_pair(tmp_path / "pair"), tmp_path / "trap"
    content = {"x_syn": torch.rand(4, 3, 5, 5), "y": Bomb(str(trap))}
    torch.save(content, folder / "x_syn.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="x_syn.pt is damaged, or holds Python objects, which could run code"):
        import_tensors(folder)
    assert not trap.exists()
    torch.load(folder / "x_syn.pt", weights_only=False)
    assert trap.exists()  # the trap was armed


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (torch.rand(3, 3, 5, 5), None, r"must hold images \(M, C, H, W\).*got \(3, 3, 5, 5\) and \(4, 7\)"),
        (torch.rand(4, 5, 5, 3), None, r"C 1 or 3.*got \(4, 5, 5, 3\)"),
        (torch.rand(0, 3, 5, 5), torch.rand(0, 7), r"got \(0, 3, 5, 5\) and \(0, 7\)"),
        (None, torch.rand(4), r"targets \(M, D\).*and \(4,\)"),
        (None, torch.full((4, 7), 1e39, dtype=torch.float64), "the targets in y_syn.pt hold values beyond float32"),
        (None, torch.full((4, 7), torch.nan), "the targets in y_syn.pt hold NaN or infinite values"),
        (torch.full((4, 3, 5, 5), float("inf")), None, "the images in x_syn.pt hold NaN or infinite values"),
        (torch.zeros(4, 3, 5, 5, dtype=torch.uint8), None, r"must be floating-point, got torch\.uint8"),
        (None, torch.zeros(4, 7, dtype=torch.int64), r"must be floating-point, got torch\.int64"),
        (torch.rand(4, 3, 5, 5, device="meta"), None, "as plain numbers, got torch.strided on meta"),
        (torch.zeros(1).expand(2**40, 3, 5, 5), None, r"the images in x_syn.pt are too large: \(1099511627776, 3"),
        ({"pixels": torch.rand(1)}, None, "x_syn.pt must hold the images as a tensor, or one tensor named x_syn"),
        ({"x_syn": torch.rand(1), "images": torch.rand(1)}, None, "x_syn.pt must hold the images as a tensor"),
        ([torch.rand(1), torch.rand(1)], None, "x_syn.pt must hold the images as a tensor"),
        ("text", None, "x_syn.pt must hold the images as a tensor"),
    ],
)
def test_tensors_that_are_no_set_are_refused(tmp_path, images, targets, message):
    with pytest.raises(InputError, match=message):
        import_tensors(write_pair(tmp_path / "pair", images, targets))


def test_damaged_and_large_files_are_refused(tmp_path, monkeypatch):
    folder = write_pair(tmp_path / "pair")
    whole = (folder / "y_syn.pt").read_bytes()
    for content in (b"", b"PK\x03\x04", whole[:-30], whole[:200], b"\x80\x02." * 9):
        (folder / "y_syn.pt").write_bytes(content)
        with pytest.raises(InputError, match="y_syn.pt is damaged"):
            import_tensors(folder)
    # A file of a few kilobytes that unpacks to many.
    with zipfile.ZipFile(folder / "y_syn.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000))
    monkeypatch.setattr(layouts, "MAX_BYTES", 50_000)
    assert (folder / "y_syn.pt").stat().st_size < 1000
    with pytest.raises(InputError, match="y_syn.pt is too large: it has 100000 bytes, and at most 50000 are read"):
        import_tensors(folder)
    (folder / "x_syn.pt").write_bytes(bytes(50_001))
    with pytest.raises(InputError, match="x_syn.pt is too large: it has 50001 bytes"):
        import_tensors(folder)


def test_tensors_that_the_json_does_not_state_are_refused(tmp_path):
    folder = export_tensors(make_set(), tmp_path / "pair")
    with pytest.raises(InputError, match="states another pixel space"):
        import_tensors(folder, pixel_space=PixelSpace.raw(3))
    assert import_tensors(folder, pixel_space=RGB).pixel_space == RGB
    torch.save(numbers(6, 7, seed=9), folder / "y_syn.pt")
    with pytest.raises(InputError, match="the targets are not those that .* states, their sha256 differs"):
        import_tensors(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 2},
        {"layout": "mkdt"},
        {"tensors": {"images": {"file": "../x_syn.pt"}, "targets": {"file": "y_syn.pt"}}},
        {"tensors": []},
        {"pixel_space": {"mean": [0.5] * 3, "std": [0.0] * 3}},
        {"pixel_space": {"mean": [float("nan")] * 3, "std": [1.0] * 3}},
        {"labels": [0.5] * 6},
        {"labels": [2**80] * 6},
        {"provenance": 3},
        {"target_transform": {}},
    ],
)
def test_a_json_that_states_nonsense_is_refused(tmp_path, changes):
    folder = export_tensors(make_set(), tmp_path / "pair")
    stated = json.loads((folder / METADATA_FILE).read_text())
    (folder / METADATA_FILE).write_text(json.dumps({**stated, **changes}))
    with pytest.raises(InputError, match=f"{METADATA_FILE} (does not state the tensors beside it|is not the record)"):
        import_tensors(folder)


def test_a_damaged_json_or_transform_is_refused(tmp_path):
    folder = export_tensors(make_set(), tmp_path / "pair")
    stated = json.loads((folder / METADATA_FILE).read_text())
    (folder / METADATA_FILE).write_text(json.dumps({**stated, "target_transform": {"sha256": "0" * 64}}))
    with pytest.raises(InputError, match="target_transform.safetensors is not a whole target transform"):
        import_tensors(folder)
    (folder / METADATA_FILE).write_text(json.dumps({**stated, "pixel_space": {"mean": ["0.5"], "std": [1]}}))
    with pytest.raises(InputError, match="ssdd_hub_tensors.json is not the record .*pixel_space: .*: export"):
        import_tensors(folder)
    for content in (b"\xff{", b"[" * 100_000):
        (folder / METADATA_FILE).write_bytes(content)
        with pytest.raises(InputError, match="does not state the tensors beside it"):
            import_tensors(folder)


def test_paths_are_taken_as_they_are_given(tmp_path, monkeypatch):
    write_pair(Path(tmp_path, "a {step} [x]*"))
    monkeypatch.chdir(tmp_path)
    assert is_foreign("a {step} [x]*") and len(import_tensors("a {step} [x]*").images) == 4
