"""Real images at equal bytes: what is stored is counted, and no more fits."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_entries import SETTINGS, make_source

from ssdd_hub.data.tiles import enlarge
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations import build_parameterisation
from ssdd_hub.distill.parameterisations.dct import Dct, DctSettings
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.entries import Baselines, select, size_of
from ssdd_hub.evaluation.forms import Form
from ssdd_hub.evaluation.loading import budgets_of
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import derive_seed
from ssdd_hub.selection.methods import CHOICES, SelectionSettings
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.pretrain import SetPairs
from ssdd_hub.sets.storage import StorageSettings, num_bytes, pack
from ssdd_hub.text import show_bytes

DCT = DctSettings(luma=40, step=0.5)
ALL = [Form("png"), Form("jpeg", 60, "int8"), Form("factor", 2, "float16"), Form("factor", 2, "int8", 0.5, 30)]
ALL += [Form("dct", targets="int8", target_step=0.25, dct=DCT)]
every_form = pytest.mark.parametrize("form", ALL, ids=str)


@pytest.fixture
def source(small_teacher):
    return make_source(small_teacher())


@pytest.fixture
def selected(source):
    return select("random", source, 8, 0, SelectionSettings())


def pixels_of(distilled):
    return distilled.pixel_space.denormalise(distilled.images) * 255


@pytest.mark.parametrize("text", ["png", "jpeg-75", "factor-2", "factor-2-jpeg-75", "dct"])
def test_forms_are_read_and_named_alike(selected, text):
    assert str(Form.of(text)) == text
    form = Form.of(text, selected.compact("uint8", "float16"))
    assert str(form) == text and form.targets == "float16"


@pytest.mark.parametrize(
    "text",
    ["", "gif", "png-2", "jpeg", "jpeg-0", "jpeg-96", "factor-1", "factor-65", "factor-2.5", "jpeg--5", "dct-2"]
    + ["factor-2-jpeg", "factor-2-jpeg-0", "factor-2-png", "jpeg-50-factor-2", "jpeg-٣", "png\n"],
)
def test_other_forms_are_refused_with_what_there_is(text):
    with pytest.raises(InputError, match="a form must be png, jpeg-QUALITY with a quality from 1 to 95, factor"):
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


def test_small_images_may_be_jpeg_files(selected):
    exact, as_png = Form("factor", 2).store(selected)
    stored, sizes = Form("factor", 2, quality=30).store(selected)
    small = exact.stored()["images"]
    shown = Form("jpeg", 30).store(DistilledSet(small / 255, selected.targets, PixelSpace.raw(1)))
    torch.testing.assert_close(pixels_of(stored), enlarge(pixels_of(shown[0]), 2), rtol=0, atol=1e-2)
    assert torch.equal(sizes, shown[1]) and not torch.equal(sizes, as_png)


def as_dct(selected, settings, targets="float32", **more):
    packed = pack(
        Dct.start(Pairs(selected.images, selected.targets), settings),
        selected.pixel_space,
        StorageSettings(targets=targets),
    )
    return DistilledSet.of(packed, **more)


@pytest.mark.parametrize("targets", ["float32", "int8"])
def test_real_images_in_dct_are_what_such_a_set_starts_from(selected, targets):
    """What the codec alone is worth: the set that a distillation of no steps would store."""
    mine = as_dct(selected, DctSettings(luma=40, step=0.5, target_step=0.25), targets)
    form = Form.of("dct", mine)
    stored, sizes = form.store(selected)
    assert torch.equal(stored.images, mine.images) and torch.equal(stored.targets, mine.targets)
    assert stored.num_bytes() == mine.num_bytes()
    assert sizes.sum() == pytest.approx(mine.num_bytes()["images"] + mine.num_bytes()["targets"])
    assert len(set(sizes.tolist())) == 1


@pytest.mark.parametrize(
    ("name", "inner", "more"),
    [
        ("quantised", {"step": 0.0}, {}),
        ("quantised", {"step": 0.0}, {"bits": 8, "target_bits": 3}),
        ("views", {"step": 0.5}, {"shift": "predicted"}),
        ("views", {"step": 0.0}, {}),
    ],
)
def test_dct_beside_a_wrapper_of_dct_has_its_settings(selected, name, inner, more):
    pairs = Pairs(selected.images, selected.targets)
    args = {"of": "dct", "of_args": {"luma": 40, "chroma": 0, **inner}, **more}
    mine = DistilledSet.of(pack(build_parameterisation(name, pairs, args), selected.pixel_space, StorageSettings()))
    form = Form.of("dct", mine)
    stored, _ = form.store(selected)
    levels = mine.packed.decoder.levels.get("coefficients")
    theirs, ours = (each.packed.tensors["coefficients"] for each in (mine, stored))
    assert f"luma 40, chroma 0, step {levels.scale[0] if levels else 0:g}" in form.detail
    assert theirs.dtype == ours.dtype
    # Nothing was learned: coefficients are those of the set, which fewer levels than 256 clip.
    assert (theirs == ours.clamp(theirs.min(), theirs.max())).float().mean() > 0.99
    torch.testing.assert_close(stored.images.mean(), mine.images.mean(), rtol=0, atol=0.02)


def test_dct_beside_other_sets_has_the_default_settings_and_their_targets(selected):
    beside = selected.compact("uint8", "int8", target_step=0.5)
    stored, _ = Form.of("dct", beside).store(selected)
    expected = as_dct(selected, DctSettings())
    assert torch.equal(stored.images, expected.images)
    assert torch.equal(stored.targets, beside.targets) and stored.stored()["targets"].dtype == torch.int8


@pytest.mark.parametrize("method", ["random", "kmeans", "high_loss", "herding"])
@pytest.mark.parametrize("text", ["jpeg-10", "dct"])
def test_every_selection_fills_the_bytes_in_every_form(tmp_path, source, method, text):
    settings = SelectionSettings(experts=1, expert_steps=2, max_images=15)
    references = Baselines(tmp_path / "references", source, settings, 7)
    selected = select("random", source, 8, 0, settings)
    (budget, (form,)), *_ = budgets_of({"mine": Form.of(text).store(selected)[0]}, [text]).items()
    references.prepare([method], [], 1, False, {budget: [form]})
    (entry,) = references.set_entries_at_bytes([method], {budget: [form]})
    count, size = entry.size(0)["images"], entry.size(0)["bytes"]
    assert entry.name == f"{method} {text}" and size <= budget
    most = 20 if method == "random" else 15
    more = form.store(select(method, source, min(count + 1, most), derive_seed(7, f"reference {method}", 0), settings))
    assert count == most or more[1].sum() + 4 > budget - 8


@pytest.mark.parametrize("text", ["jpeg-10", "dct"])
def test_a_selection_of_images_of_few_bytes_fills_them_too(tmp_path, small_teacher, monkeypatch, text):
    """How many images fit is guessed by random ones: here far fewer than of those that are selected."""
    source = make_source(small_teacher(), size=60)
    source.bank.pixels[:40] = 128
    monkeypatch.setitem(CHOICES, "kcenter", lambda source, candidates, count, *rest: torch.arange(count))
    form, first = Form.of(text), select("kcenter", source, 38, 0, SETTINGS)
    stored, sizes = form.store(first)
    budget = round(float(sizes.sum())) + stored.num_bytes()["decoder"]
    references = Baselines(tmp_path / "references", source, SETTINGS, 7)
    references.prepare(["kcenter"], [], 1, False, {budget: [form]})
    (entry,) = references.set_entries_at_bytes(["kcenter"], {budget: [form]})
    assert entry.size(0) == {"images": 38, "bytes": budget, "budget": budget}


@every_form
@pytest.mark.parametrize("share", [0.3, 0.75, 1.0])
def test_as_many_images_are_kept_as_fit(selected, form, share):
    _, sizes = form.store(selected)
    fixed = form.store(selected)[0].num_bytes()["decoder"]
    budget = fixed + int(share * sizes.sum())
    kept, size = form.fit(selected, budget)

    def size_of_first(count):
        first = {name: getattr(selected, name)[:count] for name in ("images", "targets", "labels")}
        return fixed + float(form.store(replace(selected, **first))[1].sum())

    count = len(kept.images)
    assert size_of_first(count) == pytest.approx(size) and size <= budget
    assert count == len(selected.images) or size_of_first(count + 1) > budget


@pytest.mark.parametrize("form", [Form("png"), Form("jpeg", 30), Form("dct", dct=DCT)], ids=str)
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


def test_sets_of_as_many_bytes_have_forms_of_their_own_targets(tmp_path, source, selected):
    """One of them would be compared with real images whose targets are stored as those of the other."""
    first, second = selected.compact("uint8", "int8"), selected.compact("uint8", "int8", target_step=0.5)
    # As many bytes, whatever they take.
    second.num_bytes = first.num_bytes
    budgets = budgets_of({"a": first, "b": second, "c": first}, ["png", "jpeg-30"])
    ((size, forms),) = budgets.items()
    assert size == size_of(first)["bytes"] and len(forms) == 4
    steps = [first.packed.decoder.levels["targets"].scale[0], 0.5]
    assert [form.target_step for form in forms] == [steps[0]] * 2 + [0.5] * 2
    names = [each.name for each in Baselines(tmp_path, source, SETTINGS, 7).set_entries_at_bytes(["random"], budgets)]
    assert names == [f"random {form} (int8 targets, step {step:g})" for step in steps for form in ("png", "jpeg-30")]


def test_sets_share_the_smallest_budget_that_holds_them_and_the_forms_of_the_first(selected):
    first, second = selected.compact("uint8", "int8"), selected.compact("uint8", "int8", target_step=0.5)
    size = max(size_of(each)["bytes"] for each in (first, second))
    sets = {"a": first, "b": second, "c": selected}
    budgets = budgets_of(sets, ["png"], [10**6, size + 5])
    assert {budget: [form.targets for form in forms] for budget, forms in budgets.items()} == {
        **{size + 5: ["int8"], 10**6: ["float32"]}
    }
    assert budgets[size + 5][0].target_step == first.packed.decoder.levels["targets"].scale[0]
    with pytest.raises(InputError, match="c takes .* more than all --budgets"):
        budgets_of(sets, ["png"], [size])


def test_a_form_that_the_images_do_not_fit_is_refused_before_anything_is_selected(selected):
    with pytest.raises(InputError, match="^--forms factor-5 does not fit mine: factor must divide the 16 x 16 pixels"):
        budgets_of({"mine": selected}, ["png", "factor-5"])


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


IN_BASES = [
    ("bases", {"target_bases": 3, "target_step": 0.25}, "int8"),
    ("bases", {"target_bases": 3}, "int8"),
    ("bases", {"target_bases": 3}, "float16"),
    ("quantised", {"of": "bases", "of_args": {"target_bases": 3}, "target_bits": 5}, "float32"),
    ("views", {"of": "bases", "of_args": {"target_bases": 3}, "views": 2}, "int8"),
]


@pytest.mark.parametrize(("name", "args", "targets"), IN_BASES)
@pytest.mark.parametrize("text", ["png", "factor-2-jpeg-30", "dct"])
def test_targets_of_references_have_as_many_bases_as_those_of_the_set(selected, name, args, targets, text):
    pairs, settings = Pairs(selected.images, selected.targets), StorageSettings("uint8", targets)
    mine = DistilledSet.of(pack(build_parameterisation(name, pairs, args), selected.pixel_space, settings))
    views = {name: getattr(mine, name) for name in ("views", "view_targets")}
    form = Form.of(text, mine)
    stored, sizes = form.store(replace(selected, **views))
    # By numpy: what three directions beside the mean leave out of targets and views, and the steps.
    every = torch.cat([selected.targets[:, None], *([] if name != "views" else [mine.view_targets])], 1)
    centred = every.flatten(0, 1).numpy().astype(np.float64)
    left_out = np.square(np.linalg.svd(centred - centred.mean(0), compute_uv=False)[3:]).sum()
    got = torch.cat([stored.targets[:, None], *([] if name != "views" else [stored.view_targets])], 1)
    error, rounding = (got - every).square().sum().item(), got[..., :4].numel() * (form.target_step + 0.01) ** 2
    assert left_out * 0.99 - 1e-6 < error < left_out + rounding
    assert f"in 3 {str(mine.packed.decoder.shared['target_bases'].dtype).removeprefix('torch.')} bases" in form.detail
    # The bytes: those of the set, which has the same images and targets.
    if name == "bases":
        plain, less = Form(form.kind, form.number, quality=form.quality, dct=form.dct).store(selected)
        theirs = mine.packed.decoder
        shared = {"targets": theirs.shared["target_bases"]}
        levels = {name: each for name, each in theirs.levels.items() if "target" in name}
        expected = mine.num_bytes()["targets"] + num_bytes(shared)["targets"] + 8 * len(levels)
        assert sizes.sum() - less.sum() + plain.num_bytes()["targets"] == pytest.approx(expected)


def test_references_with_bases_of_targets_fill_the_bytes_and_are_kept(tmp_path, source, selected):
    pairs, args = Pairs(selected.images, selected.targets), {"bases": 4, "target_bases": 2, "target_step": 0.25}
    packed = pack(build_parameterisation("bases", pairs, args), selected.pixel_space, StorageSettings("uint8", "int8"))
    form, references = Form.of("png", DistilledSet.of(packed)), Baselines(tmp_path, source, SETTINGS, 7)
    stored, sizes = form.store(selected)
    budget = stored.num_bytes()["decoder"] + round(sizes.sum().item())
    references.prepare(["random"], [], 1, False, {budget: [form]})
    (entry,) = references.set_entries_at_bytes(["random"], {budget: [form]})
    assert 0.8 * budget < entry.size(0)["bytes"] <= budget
    kept = entry.pairs(0).distilled
    assert kept.targets.shape[1] == selected.targets.shape[1] and np.linalg.matrix_rank(kept.targets.numpy()) == 3


@pytest.mark.parametrize("kind", ["crops", "rotations"])
def test_references_have_views_like_those_of_the_set_for_the_same_bytes(tmp_path, source, selected, kind):
    """Views that a set draws again take no bytes, nor do those of its references."""
    args = {"views": 2, "kind": kind}
    packed = pack(
        build_parameterisation("views", Pairs(selected.images, selected.targets), args),
        selected.pixel_space,
        StorageSettings("uint8"),
    )
    mine = DistilledSet.of(packed)
    pairs, form, budget = SetPairs(mine), Form.of("png", mine), size_of(mine)["bytes"]
    references = Baselines(tmp_path, source, SETTINGS, 7, pairs.num_views, pairs.view_kind)
    references.prepare(["random"], [3], 1, False, {budget: [form]})
    entries = references.set_entries(["random"], [3]) + references.set_entries_at_bytes(["random"], {budget: [form]})
    kept = [SetPairs(entry.pairs(0).distilled) for entry in entries]
    assert [(each.num_views, each.view_kind) for each in kept] == [(2, kind)] * 2
    viewed = replace(selected, views=mine.views, view_targets=mine.view_targets)
    assert form.store(viewed)[1].sum() + mine.num_bytes()["decoder"] == budget
    paid = Form.of("png", viewed).store(viewed)[1].sum() - form.store(viewed)[1].sum()
    assert paid == viewed.num_bytes()["targets"] - mine.num_bytes()["targets"] > 0


def test_the_size_of_a_set_is_what_it_stores(selected):
    compact = selected.compact("uint8", "int8")
    expected = {"images": 8, "bytes": sum(compact.num_bytes().values())}
    assert size_of(compact) == expected
    # Whatever its record says: a set from elsewhere must not choose its own size.
    for lie in (1, "none"):
        compact.provenance["selection"] = {"stored": {"bytes": lie}}
        assert size_of(compact) == expected
