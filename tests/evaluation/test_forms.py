"""Real images at equal bytes: what is stored is counted, and no more fits."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_entries import SETTINGS, make_source

from ssdd_hub.data.tiles import enlarge
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.entries import Baselines, select, size_of
from ssdd_hub.evaluation.forms import Form
from ssdd_hub.evaluation.loading import budgets_of
from ssdd_hub.selection.methods import SelectionSettings
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.text import show_bytes

ALL = [Form("png"), Form("jpeg", 60, "int8"), Form("factor", 2, "float16")]
every_form = pytest.mark.parametrize("form", ALL, ids=str)


@pytest.fixture
def source(small_teacher):
    return make_source(small_teacher())


@pytest.fixture
def selected(source):
    return select("random", source, 8, 0, SelectionSettings())


def pixels_of(distilled):
    return distilled.pixel_space.denormalise(distilled.images) * 255


@pytest.mark.parametrize("text", ["png", "jpeg-75", "factor-2"])
def test_forms_are_read_and_named_alike(text):
    assert str(Form.of(text, "int8")) == text and Form.of(text, "int8").targets == "int8"


@pytest.mark.parametrize(
    "text", ["", "gif", "png-2", "jpeg", "jpeg-0", "jpeg-96", "factor-1", "factor-2.5", "jpeg--5"]
)
def test_other_forms_are_refused_with_what_there_is(text):
    with pytest.raises(InputError, match="a form must be png, jpeg-QUALITY with a quality from 1 to 95, or factor"):
        Form.of(text)


def test_png_keeps_the_images(selected):
    stored, sizes = Form("png").store(selected)
    torch.testing.assert_close(stored.images, selected.images, rtol=0, atol=1e-5)
    assert torch.equal(stored.targets, selected.targets)
    assert sizes.sum() == sum(stored.num_bytes().values()) - stored.num_bytes()["decoder"]


def test_jpeg_is_what_pillow_makes_of_the_pixels(selected):
    stored, sizes = Form("jpeg", 40).store(selected)
    for image, shown, size in zip(pixels_of(selected), pixels_of(stored), sizes, strict=True):
        picture = Image.fromarray(image.round().byte().numpy().transpose(1, 2, 0).squeeze())
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=40, optimize=True)
        decoded = np.asarray(Image.open(file)).reshape(*image.shape[1:], -1).transpose(2, 0, 1)
        np.testing.assert_allclose(shown.numpy(), decoded, atol=1e-2)
        assert size == len(file.getvalue()) + stored.targets.shape[1] * 4


def test_small_images_are_means_shown_larger(selected):
    stored, _ = Form("factor", 2).store(selected)
    small = torch.nn.functional.avg_pool2d(pixels_of(selected), 2)
    torch.testing.assert_close(pixels_of(stored), enlarge(small.round(), 2), rtol=0, atol=1.01)


@every_form
@pytest.mark.parametrize("share", [0.3, 0.75, 1.0])
def test_as_many_images_are_kept_as_fit(selected, form, share):
    _, sizes = form.store(selected)
    fixed = form.store(selected)[0].num_bytes()["decoder"]
    budget = fixed + int(share * sizes.sum())
    kept, size = form.fit(selected, budget)
    count = len(kept.images)
    first = {name: getattr(selected, name)[:count] for name in ("images", "targets", "labels")}
    assert fixed + form.store(replace(selected, **first))[1].sum() == pytest.approx(size) and size <= budget
    # Targets are compressed together: those of fewer images take more bytes each.
    assert count == len(selected.images) or fixed + sizes[: count + 1].sum() > budget - len(selected.images)


@pytest.mark.parametrize("form", [Form("png"), Form("jpeg", 30)], ids=str)
def test_references_of_equal_bytes_fill_them_and_are_kept(tmp_path, source, form):
    references = Baselines(tmp_path / "references", source, SETTINGS, 7)
    budget = int(form.store(select("random", source, 4, 0, SelectionSettings()))[1].sum())
    budgets = {budget: [form], 3 * budget: [form]}
    references.prepare(["random", "none", "gaussian"], [], 2, False, budgets)
    entries = references.set_entries_at_bytes(["random", "none", "gaussian"], budgets)
    assert [entry.name for entry in entries] == [f"random {form} {show_bytes(size)}" for size in budgets]
    for entry, most in zip(entries, budgets, strict=True):
        sizes = [entry.size(k) for k in range(2)]
        assert all(0.6 * most < size["bytes"] <= most == size["budget"] for size in sizes)
        assert entry.identity(0) != entry.identity(1)
    folders = sorted(references.folder.iterdir())
    before = [(folder / "ssdd_hub.json").stat().st_mtime_ns for folder in folders]
    references.prepare(["random"], [], 2, False, budgets)
    assert [(folder / "ssdd_hub.json").stat().st_mtime_ns for folder in folders] == before and len(folders) == 4
    stated = {DistilledSet.load(folder).provenance["selection"]["stored"]["bytes"] for folder in folders}
    assert stated == {entry.size(k)["bytes"] for entry in entries for k in range(2)}


def test_references_of_nearly_the_same_bytes_have_names_of_their_own(tmp_path, source):
    references = Baselines(tmp_path / "references", source, SETTINGS, 7)
    entries = references.set_entries_at_bytes(["random"], {98_400: [Form("png")], 98_401: [Form("png")]})
    assert [entry.name for entry in entries] == ["random png 98400 B", "random png 98401 B"]


def test_targets_of_references_are_rounded_as_those_of_the_set(selected):
    """With a finer step they would take more bytes, and fewer real images would fit."""
    coarse = selected.compact("uint8", "int8", target_step=0.5)
    ((form,),) = budgets_of({"coarse": coarse}, ["png"]).values()
    stored, _ = form.store(selected)
    assert (form.targets, form.target_step) == ("int8", 0.5)
    assert torch.equal(stored.targets, (selected.targets / 0.5).round() * 0.5)
    assert torch.equal(stored.targets, coarse.targets)
    fine, _ = Form("png", targets="int8").store(selected)
    assert stored.num_bytes()["targets"] < fine.num_bytes()["targets"]


def test_the_size_of_a_set_is_what_it_stores(selected):
    compact = selected.compact("uint8", "int8")
    expected = {"images": 8, "bytes": sum(compact.num_bytes().values())}
    assert size_of(compact) == expected
    # Whatever its record says: a set from elsewhere must not choose its own size.
    for lie in (1, "none"):
        compact.provenance["selection"] = {"stored": {"bytes": lie}}
        assert size_of(compact) == expected
