import shutil
from dataclasses import replace

import pytest
import torch

from ssdd_hub.data.bank import ImageBank, fingerprint_pixels
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation import entries
from ssdd_hub.evaluation.entries import REFERENCES, Baselines, describe_pairs, entry_of_set, select
from ssdd_hub.models.features import pre_logits
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import derive_seed
from ssdd_hub.selection.methods import SelectionSettings
from ssdd_hub.selection.source import Source
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform

SPACE = PixelSpace((0.5,), (0.25,))
SETTINGS = SelectionSettings()


def make_source(teacher, size=20, seed=4, transform="standardise"):
    pixels = torch.randint(0, 256, (size, 1, 16, 16), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    features = teacher(pixels / 255)
    fitted = TargetTransform.fit(transform, features)
    about = {"name": "noise", "license": "mit", "fingerprint": fingerprint_pixels(pixels), "num_images": size}
    bank = ImageBank(pixels, torch.arange(size) % 2, ["a", "b"], about)
    return Source(bank, Targets(features, fitted), teacher, fitted, SPACE)


@pytest.fixture
def source(small_teacher):
    return make_source(small_teacher())


@pytest.fixture
def references(tmp_path, source):
    return Baselines(tmp_path / "references", source, SETTINGS, 7)


@pytest.fixture
def selected(monkeypatch):
    """What is selected: kind and number of images."""
    made = []

    def watched(method, given, count, *rest):
        made.append((method, count))
        return select(method, given, count, *rest)

    monkeypatch.setattr(entries, "select", watched)
    return made


def make_set(seed=0, **parts):
    drawn = torch.Generator().manual_seed(seed)
    return DistilledSet(
        torch.randn(3, 1, 4, 4, generator=drawn),
        torch.randn(3, 2, generator=drawn),
        parts.pop("space", SPACE),
        **parts,
    )


def all_pairs(set_entry, k):
    pairs = set_entry.pairs(k)
    return pairs.batch(torch.arange(len(pairs)))


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# Sets


def test_every_student_sees_the_pairs_of_the_set():
    made = make_set()
    set_entry = entry_of_set("ours", made, "cpu", same_targets=False)
    assert set_entry.name == "ours" and set_entry.same_targets is False
    assert set_entry.network is set_entry.protocols is None
    assert set_entry.pixel_space == made.student_pixel_space
    for k in (0, 5):
        assert same(all_pairs(set_entry, k), (made.images, made.targets))
        assert set_entry.identity(k) == describe_pairs(made)
    assert entry_of_set("ours", made, "cpu").same_targets


def test_a_set_is_known_by_all_that_training_on_it_depends_on():
    views = {"views": torch.ones(3, 1, 3).long(), "view_targets": torch.ones(3, 1, 2)}
    made = make_set(**views)
    others = [
        make_set(),
        replace(made, images=made.images + 1),
        replace(made, targets=made.targets.flip(0)),
        replace(made, views=made.views * 0),
        replace(made, view_targets=-made.view_targets),
        replace(made, pixel_space=PixelSpace((0.4,), (0.25,))),
        # Protocols may train on them.
        replace(made, labels=torch.arange(3), label_names=["a", "b", "c"]),
        replace(made, labels=torch.arange(3).flip(0), label_names=["a", "b", "c"]),
        replace(made, labels=torch.arange(3), label_names=["a", "b", "d"]),
    ]
    kinds = [describe_pairs(found) for found in (made, *others)]
    assert all(a != b for i, a in enumerate(kinds) for b in kinds[:i])
    told = replace(made, provenance={"method": "x"})
    assert describe_pairs(told) == describe_pairs(made)
    first, second = (entry_of_set(name, made, "cpu") for name in ("a", "b"))
    assert first.identity(0) == second.identity(1)


# Selections


@pytest.mark.parametrize("method", ["random", "kcenter", "gaussian"])
def test_a_reference_is_the_selection_of_its_student(references, source, method):
    references.prepare([method], [5], 2, progress=False)
    set_entry = references.set_entry(method, 5)
    assert set_entry.name == method and set_entry.same_targets
    for k in range(2):
        made = select(method, source, 5, derive_seed(7, f"reference {method}", k), SETTINGS)
        assert same(all_pairs(set_entry, k), (made.images, made.targets))
        assert set_entry.identity(k) == describe_pairs(made)
    assert set_entry.identity(0) != set_entry.identity(1)


@pytest.mark.parametrize("changed", [{"labels": torch.zeros(20).long()}, {"label_names": ["a", "other"]}])
def test_other_labels_are_selected_anew(references, selected, source, changed):
    references.prepare(["random"], [5], 1, progress=False)
    relabelled = replace(source, bank=replace(source.bank, **changed))
    again = replace(references, source=relabelled)
    again.prepare(["random"], [5], 1, progress=False)
    assert selected == [("random", 5)] * 2
    found = again.set_entry("random", 5).pairs(0).distilled
    assert found.label_names == relabelled.bank.label_names
    assert set(found.labels.tolist()) <= set(relabelled.bank.labels.tolist())
    assert again.set_entry("full", 5).identity(0) != references.set_entry("full", 5).identity(0)


def test_what_was_selected_is_kept(references, selected, source):
    references.prepare(["random", "herding"], [5], 2, progress=False)
    assert selected == [("random", 5)] * 2 + [("herding", 5)] * 2
    before = all_pairs(references.set_entry("random", 5), 1)
    files = {path: path.stat().st_mtime_ns for path in references.folder.rglob("*")}
    # Another process, later.
    later = Baselines(references.folder, source, SelectionSettings(), 7)
    later.prepare(["random", "herding", "none", "full", "teacher"], [5, 5], 2, progress=False)
    assert len(selected) == 4 and same(all_pairs(later.set_entry("random", 5), 1), before)
    assert {path: path.stat().st_mtime_ns for path in references.folder.rglob("*")} == files
    later.prepare(["random"], [5, 4], 3, progress=False)
    assert selected[4:] == [("random", 5), ("random", 4), ("random", 4), ("random", 4)]
    assert same(all_pairs(later.set_entry("random", 5), 1), before)


def test_an_interrupted_preparation_goes_on(references, selected, monkeypatch):
    monkeypatch.setattr(entries, "select", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        references.prepare(["random"], [5], 2, progress=False)
    with pytest.raises(InputError, match="there is no distilled set"):
        references.set_entry("random", 5).identity(0)
    monkeypatch.undo()
    references.prepare(["random"], [5], 2, progress=False)
    assert len(all_pairs(references.set_entry("random", 5), 1)[0]) == 5


@pytest.mark.parametrize("damage", ["record", "images"])
def test_a_damaged_selection_is_named_and_made_anew(references, caplog, damage):
    references.prepare(["random"], [5], 2, progress=False)
    entry = references.set_entry("random", 5)
    before, paths = all_pairs(entry, 1), sorted(references.folder.iterdir())
    shutil.rmtree(paths[1] / "data") if damage == "images" else (paths[1] / "ssdd_hub.json").write_text("")
    references.prepare(["random"], [5], 2, progress=False)
    assert [record.message.split()[0] for record in caplog.records] == [str(paths[1])]
    assert same(all_pairs(references.set_entry("random", 5), 1), before)


def test_what_a_selection_depends_on_makes_another_one(references, selected, source, small_teacher):
    references.prepare(["random"], [5], 1, progress=False)
    others = [
        replace(references, seed=8),
        replace(references, settings=SelectionSettings(max_images=10)),
        replace(references, source=make_source(source.teacher, seed=5)),
        replace(references, source=make_source(small_teacher(1))),
        replace(references, source=make_source(source.teacher, transform="centre")),
        replace(references, source=replace(source, pixel_space=PixelSpace.raw(1))),
    ]
    for number, other in enumerate(others, 2):
        other.prepare(["random"], [5], 1, progress=False)
        assert len(selected) == number
    assert len(list(references.folder.iterdir())) == 7
    # Its own is still its own.
    assert references.set_entry("random", 5).identity(0) != others[0].set_entry("random", 5).identity(0)


# Several sets


def test_each_number_of_images_has_selections_of_its_own(references):
    kinds = ["none", "random", "full", "teacher", "kmeans"]
    for counts in ([5], [5, 5]):
        assert [found.name for found in references.set_entries(kinds, counts)] == kinds
    assert references.set_entries([], [5]) == []
    references.prepare(["random"], [6, 4, 6], 1, progress=False)
    found = references.set_entries(["full", "random", "none"], [6, 4, 6])
    assert [set_entry.name for set_entry in found] == ["full", "random-6", "random-4", "none"]
    assert [len(set_entry.pairs(0)) for set_entry in found[:3]] == [20, 6, 4]
    assert found[3].pairs(0) is found[3].network is None and found[3].identity(0) == found[3].identity(3)


def test_an_unknown_reference_is_named(references):
    message = f"a reference must be one of {', '.join(REFERENCES)}, got 'randon'; the nearest is random"
    with pytest.raises(InputError, match=message):
        references.set_entries(["randon"], [5])


# Baselines without a selection


def test_the_whole_source_is_all_images_with_their_targets(references, source, small_teacher):
    full = references.set_entry("full", 5, "all")
    images, targets = all_pairs(full, 0)
    expected = (source.bank.pixels.float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
    assert torch.equal(targets, source.targets[:]) and full.name == "all"
    others = [
        make_source(source.teacher, seed=5),
        make_source(small_teacher(1)),
        make_source(source.teacher, transform="centre"),
        replace(source, pixel_space=PixelSpace.raw(1)),
    ]
    kinds = [replace(references, source=other).set_entry("full", 5).identity(0) for other in (source, *others)]
    assert full.identity(0) == full.identity(1) == kinds[0]
    assert all(a != b for i, a in enumerate(kinds) for b in kinds[:i])


def test_the_teacher_stands_for_its_own_features(references, source, small_teacher):
    set_entry = references.set_entry("teacher", 5)
    assert set_entry.pairs(0) is None and set_entry.protocols == ("probe", "probe_mkdt", "knn")
    network, pixels = set_entry.network(), source.bank.pixels / 255
    found = pre_logits(network, SPACE.normalise(pixels))
    torch.testing.assert_close(found, source.teacher(pixels), rtol=1e-4, atol=1e-5)
    other = replace(references, source=make_source(small_teacher(1))).set_entry("teacher", 5)
    assert set_entry.identity(0) == set_entry.identity(1) != other.identity(0)
    # The teacher is left as it is.
    before = {name: tensor.clone() for name, tensor in source.teacher.state_dict().items()}
    network.to(torch.float64).train()
    assert list(network.parameters()) == [] and not source.teacher.training
    for name, tensor in source.teacher.state_dict().items():
        assert torch.equal(before[name], tensor) and tensor.dtype == before[name].dtype
