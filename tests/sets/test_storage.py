"""Compact sets: what they store is what comes back, bit for bit, whatever way they travel."""

import json
import re
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.fft import dctn
from test_distilled import GREY, RGB, contents

from ssdd_hub import InputError
from ssdd_hub.data.tiles import enlarge
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.dct import Dct, DctSettings
from ssdd_hub.distill.parameterisations.factor import Factor, FactorSettings
from ssdd_hub.record import read_metadata
from ssdd_hub.sets.check import check_folder
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.storage import StorageSettings, num_bytes, pack
from ssdd_hub.text import show_bytes

FORMS = [
    (pixels, targets, factor)
    for pixels in ("float32", "uint8")
    for targets in ("float32", "float16", "int8")
    for factor in (1, 2)
]
every_form = pytest.mark.parametrize(("pixels", "targets", "factor"), FORMS)


def make_set(channels=3, views=False, size=6):
    source = torch.Generator().manual_seed(channels)
    pixels = torch.rand(size, channels, 8, 8, generator=source) * 1.4 - 0.2
    space = RGB if channels == 3 else GREY
    extra = {}
    if views:
        extra = {"views": torch.zeros(size, 2, 3, dtype=torch.int64)}
        extra["view_targets"] = torch.randn(size, 2, 5, generator=source)
    return DistilledSet(space.normalise(pixels), torch.randn(size, 5, generator=source) * 3, space, **extra)


DCT = DctSettings(luma=40, chroma=12, step=0.3, target_step=0.25)


def make_dct(settings=DCT, channels=3, views=None):
    whole = make_set(channels)
    learned = Dct.start(Pairs(whole.images, whole.targets), settings)
    return learned, pack(learned, whole.pixel_space, StorageSettings(), views)


def zstd(tensor):
    return pa.Codec("zstd", 19).compress(tensor.numpy().tobytes(), asbytes=True)


def written(tensor):
    """Rows as `datasets` gives them: int8 numbers are larger by 128."""
    return (tensor.int() + 128 if tensor.dtype == torch.int8 else tensor).tolist()


def same(one, other):
    assert torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)
    assert (one.view_targets is None) == (other.view_targets is None)
    assert one.view_targets is None or torch.equal(one.view_targets, other.view_targets)


@every_form
@pytest.mark.parametrize("channels", [1, 3])
def test_a_compact_set_comes_back_bit_for_bit(tmp_path, pixels, targets, factor, channels):
    compact = make_set(channels, views=True).compact(pixels, targets, factor)
    loaded = DistilledSet.load(compact.save(tmp_path / "set"))
    same(loaded, compact)
    assert not [finding for finding in check_folder(tmp_path / "set") if finding.level == "error"]
    # And again from what was loaded, to the same files.
    loaded.save(tmp_path / "again" / "set")
    assert contents(tmp_path / "again" / "set") == contents(tmp_path / "set")
    assert read_metadata(tmp_path / "set")["format_version"] == (1 if compact.packed is None else 2)
    assert compact.images.shape == (6, channels, 8, 8) and compact.images.dtype == torch.float32


@every_form
def test_rounding_moves_a_value_by_half_a_level_at_most(pixels, targets, factor):
    whole = make_set()
    compact = whole.compact(pixels, targets, factor)
    space = whole.pixel_space
    tiles = torch.nn.functional.avg_pool2d(whole.images, factor) if factor > 1 else whole.images
    shown = space.denormalise(enlarge(tiles, factor))
    step = 1.5 / 255 if pixels == "uint8" else 1e-6  # the pixels reach from about -0.2 to 1.2
    assert (space.denormalise(compact.images) - shown).abs().max() <= step / 2 + 1e-5
    most = whole.targets.abs().max()
    steps = {"float32": most * 0, "float16": most * 2**-10, "int8": most / 127}[targets]
    assert ((compact.targets - whole.targets).abs() <= steps / 2 + 1e-5).all()


def test_real_images_of_8_bits_are_stored_as_they_are():
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    real = DistilledSet(RGB.normalise(pixels / 255), torch.zeros(4, 2), RGB)
    assert torch.equal(real.compact(targets="float32").packed.tensors["images"], pixels)


@pytest.mark.parametrize("factor", [1, 2])
def test_the_picture_column_is_the_data_and_the_code_of_the_card_decodes_it(tmp_path, factor):
    compact = make_set().compact("uint8", "int8", factor)
    folder = compact.save(tmp_path / "set")
    table = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.column_names == ["id", "image", "target"]
    stored = np.stack([np.array(row) for row in table["image"]]).transpose(0, 3, 1, 2)
    assert np.array_equal(stored, compact.packed.tensors["images"].numpy())
    streamed = datasets.load_dataset(str(folder), split="train", streaming=True)
    assert [row["target"] for row in streamed] == written(compact.packed.tensors["targets"])


@every_form
@pytest.mark.parametrize("channels", [1, 3])
def test_the_code_on_the_card_gives_what_the_set_holds(tmp_path, monkeypatch, pixels, targets, factor, channels):
    follow_the_card(make_set(channels).compact(pixels, targets, factor), tmp_path, monkeypatch)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("settings", [DCT, DctSettings(luma=50, chroma=20, step=0)])
def test_the_code_on_the_card_decodes_coefficients(tmp_path, monkeypatch, settings, channels):
    follow_the_card(DistilledSet.of(make_dct(settings, channels)[1]), tmp_path, monkeypatch)


def follow_the_card(compact, tmp_path, monkeypatch):
    card = (compact.save(tmp_path / "set") / "README.md").read_text(encoding="utf-8")
    # The code runs where the card lies.
    monkeypatch.chdir(tmp_path / "set")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    _, plain = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[:2]
    assert "ssdd_hub import" not in plain
    names = {}
    exec(plain, names)
    torch.testing.assert_close(names["images"], compact.images, rtol=0, atol=1e-5)
    torch.testing.assert_close(names["targets"], compact.targets, rtol=0, atol=1e-5)
    sizes = read_metadata(tmp_path / "set")["num_bytes"]
    total = sum(compact.num_bytes().values())
    assert f"As stored the set takes {show_bytes(total)} (images {show_bytes(sizes['images'])}, targets " in card
    assert f"in files of {show_bytes(sizes['file'])}." in card
    return names


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("settings", [DCT, DctSettings(luma=64, chroma=64, step=0), DctSettings(target_step=2.0)])
def test_coefficients_come_back_bit_for_bit_and_are_what_was_learned(tmp_path, channels, settings):
    learned, packed = make_dct(settings, channels)
    made = DistilledSet.of(packed)
    torch.testing.assert_close(made.images, learned().images.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(made.targets, learned().targets.detach(), rtol=0, atol=1e-6)
    folder = made.save(tmp_path / "set")
    loaded = DistilledSet.load(folder)
    same(loaded, made)
    assert not [finding for finding in check_folder(folder) if finding.level == "error"]
    loaded.save(tmp_path / "again" / "set")
    assert contents(tmp_path / "again" / "set") == contents(folder)
    table = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert table["coefficients"][:] == written(packed.tensors["coefficients"])


def test_stored_coefficients_are_numbers_of_steps_of_the_discrete_cosine_transform():
    """In NumPy, by SciPy's transform of each opponent colour."""
    whole, (_, packed) = make_set(), make_dct()
    red, green, blue = whole.images.double().numpy().transpose(1, 0, 2, 3)
    colours = [(red + green + blue) / 3**0.5, (red - blue) / 2**0.5, (red - 2 * green + blue) / 6**0.5]
    order = sorted(range(64), key=lambda i: ((i // 8) ** 2 + (i % 8) ** 2, i))
    expected = [
        dctn(plane, axes=(1, 2), norm="ortho").reshape(6, 64)[:, order[:count]]
        for plane, count in zip(colours, (40, 12, 12), strict=True)
    ]
    numbers = np.concatenate(expected, 1) / 0.3
    clear = np.abs(numbers - np.floor(numbers) - 0.5) > 1e-4
    assert np.array_equal(packed.tensors["coefficients"].numpy()[clear], np.round(numbers)[clear])
    assert np.array_equal(packed.tensors["targets"].numpy(), np.round(whole.targets.numpy() / 0.25))
    sizes = num_bytes(packed.tensors, packed.decoder)
    stored = packed.tensors
    assert sizes == {
        "images": len(zstd(stored["coefficients"])),
        "targets": len(zstd(stored["targets"])),
        "decoder": 16,
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"shape": [3, 8, 9]}, None),
        ({"shape": [2, 8, 8]}, "dct is for grey or RGB images, got 2 channels"),
        ({"shape": "large"}, "shape must be channels, height and width"),
        ({"shape": [3, 10**6, 10**6]}, "at most 67108864"),
        ({"luma": 65}, "luma of dct must be at most 64"),
        ({"luma": 41}, "does not fit the stored coefficients"),
        ({"step": "wide"}, "step must be a finite number"),
        ({"more": 1}, "does not fit the stored coefficients"),
    ],
)
def test_a_record_of_coefficients_that_is_wrong_is_refused(tmp_path, args, message):
    _, packed = make_dct()
    folder = DistilledSet.of(packed).save(tmp_path / "set")
    record = json.loads((folder / "ssdd_hub.json").read_text())
    record["storage"]["parameterisation"]["args"] |= args
    (folder / "ssdd_hub.json").write_text(json.dumps(record))
    if message is None:
        assert DistilledSet.load(folder).images.shape == (6, 3, 8, 9)
        return
    with pytest.raises(InputError) as refused:
        DistilledSet.load(folder)
    assert message in str(refused.value)


def test_what_a_parameterisation_learned_is_what_is_stored():
    whole = make_set()
    learned = Factor.start(Pairs(whole.images, whole.targets), FactorSettings(factor=2))
    packed = pack(learned, whole.pixel_space, StorageSettings())
    made = DistilledSet.of(packed)
    assert torch.equal(made.images, learned().images.detach())
    assert packed.tensors["images"].shape == (6, 3, 4, 4)


@every_form
def test_bytes_are_those_that_are_stored(tmp_path, pixels, targets, factor):
    compact = make_set(views=True).compact(pixels, targets, factor)
    sizes = compact.num_bytes()
    side = 8 // factor
    if pixels == "float32":
        assert sizes["images"] == 6 * 3 * side * side * 4
    else:
        folder = compact.save(tmp_path / "set")
        rows = datasets.load_dataset(str(folder), split="train", streaming=True).decode(False)
        assert sizes["images"] == sum(len(row["image"]["bytes"]) for row in rows)
    width = {"float32": 4, "float16": 2, "int8": 1}[targets]
    views = len(zstd(torch.zeros(6, 2, 3, dtype=torch.int64)))
    if targets == "int8":
        stored = compact.packed.tensors
        assert sizes["targets"] == len(zstd(stored["targets"])) + len(zstd(stored["view_targets"])) + views
    else:
        assert sizes["targets"] == 6 * 5 * 3 * width + views
    assert sizes["decoder"] == 4 * 2 * (3 * (pixels == "uint8") + 2 * (targets == "int8"))
    stated = read_metadata(compact.save(tmp_path / "set"))["num_bytes"]
    assert stated.pop("file") > 0 and stated == sizes


def test_a_file_takes_what_its_numbers_take(tmp_path):
    """Parquet has no numbers of one byte; those of four would take a quarter more once they are compressed."""
    source = torch.Generator().manual_seed(0)
    images, targets = torch.randn(600, 3, 8, 8, generator=source), torch.randn(600, 60, generator=source)
    learned = Dct.start(Pairs(images, targets), replace(DCT, luma=64, chroma=64))
    made = DistilledSet.of(pack(learned, RGB, StorageSettings()))
    sizes, folder = made.num_bytes(), made.save(tmp_path / "set")
    file = sum(path.stat().st_size for path in (folder / "data").iterdir())
    # Beside it the numbers of the rows, and the footer.
    assert sizes["images"] + sizes["targets"] < file < 1.01 * (sizes["images"] + sizes["targets"]) + 6000
    rows = datasets.load_dataset(str(folder), split="train")
    assert rows["coefficients"][:] == written(made.packed.tensors["coefficients"])
    same(DistilledSet.load(folder), made)


def test_values_that_cannot_be_stored_are_refused():
    whole = make_set()
    with pytest.raises(InputError, match="factor must divide the 8 x 8 pixels"):
        whole.compact(factor=3)
    with pytest.raises(InputError, match="storage.pixels must be one of"):
        whole.compact(pixels="int4")
    whole.targets[0, 0] = 1e6
    with pytest.raises(InputError, match="float16 holds values up to 65504.*: store targets as float32"):
        whole.compact(targets="float16")


def test_a_changed_compact_set_is_not_saved_as_what_it_was(tmp_path):
    compact = make_set().compact()
    compact.images[0] += 1
    with pytest.raises(InputError, match="the images of a compact set are not those that it stores"):
        compact.save(tmp_path / "set")
    assert not (tmp_path / "set").exists()
    compact.compact().save(tmp_path / "set")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("storage",), None, "scale and offset of images, targets must be stated"),
        (("storage", "images"), None, "scale and offset of images must be stated"),
        (("storage", "images", "scale"), [0.1], "storage.images must state 3 scale"),
        (("storage", "targets", "scale"), [0], "storage.targets.scale[0] must be a number from"),
        (("storage", "targets", "offset"), ["a"], "storage.targets.offset[0] must be a number"),
        (("storage", "parameterisation", "name"), "os.system", "storage.parameterisation must be one of"),
        (("storage", "parameterisation", "args"), {"factor": 2, "x": 1}, "unexpected keyword argument 'x'"),
        (("storage", "parameterisation", "args"), {}, "storage.parameterisation factor with {} does not fit"),
        (("storage", "parameterisation", "args"), {"factor": 10**9}, "factor must be"),
        (("storage", "parameterisation", "args"), {"factor": True}, "factor must be"),
        (("tensors", "images", "dtype"), "int8", "tensors.images.dtype must be float32 or uint8"),
        (("tensors", "images", "dtype"), "float32", "lack the column 'pixels'"),
        (("tensors", "targets", "dtype"), "float16", "does not hold plain numbers of type float16"),
        (("tensors", "images", "shape"), [6, 3, 4, 5], "does not hold images of the stated shape"),
    ],
)
def test_a_record_of_storage_that_is_wrong_is_refused_by_name(tmp_path, place, value, message):
    folder = make_set().compact("uint8", "int8", 2).save(tmp_path / "set")
    record = json.loads((folder / "ssdd_hub.json").read_text())
    part = record
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (folder / "ssdd_hub.json").write_text(json.dumps(record))
    with pytest.raises(InputError) as refused:
        DistilledSet.load(folder)
    assert message in str(refused.value)
    assert any(message in str(finding) for finding in check_folder(folder) if finding.level == "error")


def test_a_small_folder_that_decodes_to_gigabytes_is_refused(tmp_path, monkeypatch):
    folder = make_set().compact("uint8", "int8", 2).save(tmp_path / "set")
    monkeypatch.setenv("SSDD_HUB_MAX_SET_GIB", str(4 * 6 * 3 * 64 * 0.9 / 2**30))
    with pytest.raises(InputError, match="SSDD_HUB_MAX_SET_GIB"):
        DistilledSet.load(folder)
