import hashlib
import json
from dataclasses import replace

import pytest
import torch
from test_coresets import no_copies

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.evaluation.entries import select
from ssdd_hub.selection import coresets
from ssdd_hub.selection.methods import CHOICES, SelectionSettings, choose_rows
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.targets.bank import FeatureBank, Index, Shard, shard_path, write_shard
from ssdd_hub.targets.targets import Targets

SMALL = SelectionSettings(
    expert_args={"widths": [4, 4], "norm": "instance"}, experts=2, expert_steps=3, expert_batch_size=8, tile_factor=1
)
REAL = list(CHOICES)


def rows_of(made, source):
    """Returns which source images a set holds."""
    images = source.images(torch.arange(len(source.bank)))
    return torch.tensor([int((images == image).flatten(1).all(1).nonzero()) for image in made.images])


@pytest.mark.parametrize("method", REAL)
def test_a_selection_is_a_set_of_real_images_with_their_targets(tmp_path, source, method):
    given = source()
    made = select(method, given, 6, 3, SMALL)
    rows = rows_of(made, given)
    assert no_copies(rows, 6, 20) and torch.equal(made.targets, given.targets[rows])
    assert torch.equal(made.labels, given.bank.labels[rows]) and made.label_names == ["a", "b"]
    again = DistilledSet.load(select(method, given, 6, 3, SMALL).save(tmp_path / "set"))
    for name in ("images", "targets", "labels"):
        assert torch.equal(getattr(again, name), getattr(made, name))
    versions = {"versions": again.provenance["versions"]}
    assert again.pixel_space == given.pixel_space and again.provenance == made.provenance | versions
    card = (tmp_path / "set" / "README.md").read_text("utf-8")
    assert "6 real images (1x16x16, float32), each with a target vector of width 24, chosen from" in card


def test_a_selection_tells_how_it_was_made(source):
    given = source()
    made = select("herding", given, 4, 3, SMALL).provenance
    rows = rows_of(select("herding", given, 4, 3, SMALL), given)
    assert made["method"] == "selection/herding" and made["seed"] == made["selection"]["seed"] == 3
    assert made["selection"]["indices_sha256"] == hashlib.sha256(rows.numpy().astype("<i8").tobytes()).hexdigest()
    assert made["selection"]["expert_steps"] == 3 and made["selection"]["count"] == 4
    assert made["source"] == given.bank.provenance and made["license"] == "mit"
    assert made["teacher"]["weights_sha256"] == given.teacher.weights_sha256()
    assert made["target_transform"]["kind"] == "standardise"
    assert made["student_pixel_space"] == given.pixel_space.to_dict()
    assert json.loads(json.dumps(made)) == made


@pytest.mark.parametrize("method", ["random", "kmeans", "kcenter", "gaussian"])
def test_the_seed_decides(source, method):
    given = source()
    first, other = (select(method, given, 6, seed, SMALL).images for seed in (0, 1))
    assert not torch.equal(first, other)


@pytest.mark.parametrize("method", REAL)
def test_all_images_can_be_selected_and_no_more(source, method):
    given = source(size=7)
    assert sorted(rows_of(select(method, given, 7, 0, SMALL), given).tolist()) == list(range(7))
    with pytest.raises(InputError, match="8 images are to be selected, and there are only 7: select fewer"):
        select(method, given, 8, 0, SMALL)


@pytest.mark.parametrize("method", REAL)
def test_a_method_looks_at_no_more_images_than_it_may(source, method):
    given, settings = source(), replace(SMALL, max_images=5)
    if method == "random":
        assert len(select(method, given, 6, 0, settings).images) == 6
        return
    assert torch.equal(*(select(method, given, 5, 0, settings).targets.sort(0).values for _ in range(2)))
    seen = {tuple(sorted(rows_of(select(method, given, 5, seed, settings), given).tolist())) for seed in range(3)}
    assert len(seen) == 3
    with pytest.raises(InputError, match="selection.max_images leaves only 5"):
        select(method, given, 6, 0, settings)


def test_kmeans_on_pixels_looks_at_pixels(source):
    given = source()
    pixels = given.bank.pixels
    pixels[:10] = pixels[:10] // 8
    pixels[10:] = 255 - pixels[10:] // 8
    rows = rows_of(select("kmeans-pixels", given, 2, 0, SMALL), given)
    assert sorted((rows >= 10).tolist()) == [False, True]


def test_high_loss_finds_the_images_with_targets_that_no_expert_can_learn(source):
    given = source(planted=40.0, size=24)
    settings = replace(SMALL, expert_steps=20, expert_learning_rate=0.01)
    assert sorted(rows_of(select("high_loss", given, 3, 0, settings), given).tolist()) == [0, 1, 2]


def test_high_loss_ranks_by_the_mean_error_of_experts_that_are_not_trained_further(source, monkeypatch):
    given, experts = source(), []

    def keep(student, pairs, settings, seed):
        experts.append(student.eval())
        return student

    monkeypatch.setattr("ssdd_hub.selection.methods.fit_student", keep)
    rows = rows_of(select("high_loss", given, 20, 0, SMALL), given)
    assert len(experts) == 2 and not torch.equal(*(expert.head.weight for expert in experts))
    with torch.no_grad():
        outputs = [expert(given.images(torch.arange(20))).double() for expert in experts]
    errors = sum((output - given.targets[:].double()).square().mean(1) for output in outputs)
    assert rows.tolist() == errors.argsort(descending=True).tolist()


def test_an_expert_that_diverges_is_reported(source):
    with pytest.raises(InputError, match="an expert of high_loss diverges: lower --selection.expert-learning-rate"):
        select("high_loss", source(planted=1e15), 3, 0, replace(SMALL, expert_steps=8, expert_learning_rate=1e4))


@pytest.mark.parametrize("steps", [1, 7, 1000])
@pytest.mark.parametrize("size", [1, 255, 256, 50_000])
def test_experts_are_trained_for_as_many_steps_as_stated(steps, size):
    assert replace(SelectionSettings(), expert_steps=steps).training(size).num_steps(size) == steps


def test_noise_has_the_targets_that_the_teacher_gives_it(source):
    given = source(channels=3)
    made = select("gaussian", given, 300, 0, SMALL)
    assert made.images.shape == (300, 3, 16, 16) and made.labels is None and made.label_names is None
    assert abs(made.images.mean()) < 0.02 and abs(made.images.std() - 1) < 0.02
    pixels = made.images * 0.25 + 0.5
    assert pixels.min() < 0 and pixels.max() > 1
    torch.testing.assert_close(made.targets, given.transform(given.teacher(pixels)))
    assert made.provenance["method"] == "selection/gaussian"
    assert "indices_sha256" not in made.provenance["selection"]


def test_a_source_without_labels_and_with_plain_features_has_none_in_the_set(source):
    made = select("random", source(labels=False, transform="none"), 3, 0, SMALL)
    assert made.labels is None and made.label_names is None and made.target_transform is None


@pytest.mark.parametrize("method", ["kmeans", "kcenter", "herding"])
def test_targets_on_the_disk_are_read_in_parts(tmp_path, monkeypatch, source, method):
    given = source()
    for number, part in enumerate(given.targets.features.split(8)):
        write_shard(shard_path(tmp_path, number), part, torch.float32)
    Index.of({}, [Shard.read(shard_path(tmp_path, number)) for number in range(3)], 8).write(tmp_path)
    monkeypatch.setattr("ssdd_hub.targets.targets.MOST_IN_MEMORY", 0)
    stored = replace(given, targets=Targets(FeatureBank(tmp_path), given.transform))
    expected = select(method, given, 6, 0, SMALL)
    # Six points may be in memory: k-means then fits a sample.
    monkeypatch.setattr(coresets, "MOST_HELD", 4 * 24 * 6)
    monkeypatch.setattr(coresets, "_MOST_IN_PART", 4)
    made = select(method, stored, 6, 0, SMALL)
    assert no_copies(rows_of(made, given), 6, 20)
    if method != "kmeans":
        assert torch.equal(made.images, expected.images) and torch.equal(made.targets, expected.targets)


def test_what_does_not_exist_is_named(source):
    with pytest.raises(
        InputError, match="selection must be one of random, kmeans, .* got 'kmean'; the nearest is kmeans"
    ):
        select("kmean", source(), 3, 0, SMALL)
    with pytest.raises(InputError, match="selection of real images must be one of random, kmeans, .*, got 'gaussian'"):
        choose_rows("gaussian", source(), 3, 0, SMALL)
    with pytest.raises(InputError, match="at least 1 image, got 0"):
        select("gaussian", source(), 0, 0, SMALL)


def test_all_wrong_settings_are_named():
    with pytest.raises(SettingsError) as caught:
        SelectionSettings(
            **{"max_images": 0, "kmeans_exact": -1, "kmeans_iterations": 0, "kmeans_batch_size": 0, "experts": 0},
            **{"expert_steps": 0, "expert_batch_size": 0, "expert_learning_rate": 0, "expert_momentum": 1},
            **{"expert_weight_decay": -1, "expert_args": {"in_chans": 3}},
        )
    assert len(caught.value.problems) == 11 and all("selection." in problem for problem in caught.value.problems)
