import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.errors import SettingsError
from ssdd_hub.models.features import pre_logits
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import generator
from ssdd_hub.teachers.monitor import Watch, WatchSettings, effective_rank, knn_accuracy, knn_records, render_training


def features_of_classes(count, seed, width=6, classes=4):
    numbers = generator(seed, "features")
    labels = torch.randint(0, classes, (count,), generator=numbers)
    centres = torch.randn(classes, width, generator=generator(0, "centres"))
    return centres[labels] + torch.randn(count, width, generator=numbers), labels


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.1), (7, 0.1), (50, 0.5), (999, 0.02)])
def test_the_vote_is_that_of_a_plain_loop(neighbours, temperature):
    (features, labels), (test_features, test_labels) = features_of_classes(120, 1), features_of_classes(40, 2)
    right = 0
    for feature, label in zip(test_features, test_labels, strict=True):
        similarities = functional.cosine_similarity(feature[None].double(), features.double())
        nearest = similarities.topk(min(neighbours, 120)).indices
        votes = torch.zeros(4, dtype=torch.float64)
        for index in nearest:
            votes[labels[index]] += torch.exp(similarities[index] / temperature)
        right += int(votes.argmax() == label)
    assert knn_accuracy(features, labels, test_features, test_labels, neighbours, temperature) == right / 40
    assert 0.3 < right / 40 < 1


def test_class_numbers_may_have_gaps_and_a_class_may_be_unknown_to_the_voters():
    features, labels = torch.eye(3), torch.tensor([7, 3, 90])
    assert knn_accuracy(features, labels, features, labels, neighbours=1) == 1.0
    assert knn_accuracy(features, labels, features, torch.tensor([7, 4, 90]), neighbours=1) == pytest.approx(2 / 3)


def test_the_effective_rank_counts_the_dimensions_that_are_filled():
    orthogonal = torch.linalg.qr(torch.randn(50, 8, generator=generator(0, "rank")))[0]
    assert effective_rank(orthogonal) == pytest.approx(8)
    assert effective_rank(orthogonal[:, :3] @ torch.randn(3, 8, generator=generator(1, "rank"))) < 3.001
    assert effective_rank(torch.ones(50, 8)) == pytest.approx(1)
    # Singular values 3 and 1: exp(H(3/4, 1/4)).
    shares = np.array([0.75, 0.25])
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum())
    )
    assert effective_rank(torch.zeros(4, 3)) == 1.0


def test_the_vote_is_that_of_scikit_learn():
    (features, labels), (test_features, test_labels) = features_of_classes(300, 3), features_of_classes(90, 4)
    vote = KNeighborsClassifier(25, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.1))
    expected = vote.fit(features, labels).score(test_features, test_labels)
    assert knn_accuracy(features, labels, test_features, test_labels, 25) == pytest.approx(expected)


# Watch


@pytest.fixture
def banks(digits):
    return digits[0].subset(range(200)), digits[1].subset(range(60))


def scores_of(banks, backbone, space=None, **settings):
    return Watch(*banks, space or PixelSpace.raw(1), WatchSettings(**settings), seed=0, batch_size=7)(backbone)


def test_a_watch_scores_pre_logits_in_the_backbones_pixel_space_and_changes_nothing(banks, small_backbone):
    source, heldout = banks
    space, backbone = PixelSpace.of(source.pixels), small_backbone().train()
    backbone.blocks[0].eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    scores = scores_of(banks, backbone, space, neighbours=5)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert backbone.training and not backbone.blocks[0].training
    backbone.eval()
    with torch.no_grad():
        features, test = (pre_logits(backbone, space.normalise(bank.pixels / 255)) for bank in banks)
    assert scores["knn"] == pytest.approx(knn_accuracy(features, source.labels, test, heldout.labels, 5))
    assert scores["rank"] == pytest.approx(effective_rank(test), rel=1e-4)


def test_images_of_unknown_class_neither_vote_nor_count(banks, small_backbone):
    source, heldout = banks
    cut = ImageBank(source.pixels, source.labels.clone(), None, source.provenance)
    cut.labels[150:] = -1
    parts = [(bank, heldout) for bank in (cut, source.subset(range(150)))]
    first, second = (scores_of(part, small_backbone(), neighbours=3)["knn"] for part in parts)
    assert first == second


@pytest.mark.parametrize("unlabelled", [0, 1])
def test_without_labels_only_the_rank_is_watched(banks, small_backbone, unlabelled):
    banks = [
        ImageBank(bank.pixels, None if number == unlabelled else bank.labels, None, bank.provenance)
        for number, bank in enumerate(banks)
    ]
    assert scores_of(banks, small_backbone()).keys() == {"rank"}


def test_at_most_so_many_images_are_watched_and_the_seed_draws_them_with_their_labels(banks, small_backbone):
    drawn = [Watch(*banks, PixelSpace.raw(1), WatchSettings(max_images=50), seed).watched for seed in (0, 0, 1)]
    assert [len(chosen.unique()) for _, chosen in drawn[0]] == [50, 50]
    assert torch.equal(drawn[0][0][1], drawn[1][0][1]) and not torch.equal(drawn[0][0][1], drawn[2][0][1])
    watch = Watch(*banks, PixelSpace.raw(1), WatchSettings(max_images=40, neighbours=1), seed=0)
    watch.watched[1] = watch.watched[0]
    # Each image is its own nearest neighbour.
    assert watch(small_backbone())["knn"] == 1.0


def test_features_that_are_not_finite_have_no_scores(banks, small_backbone):
    backbone = small_backbone()
    next(backbone.parameters()).data.fill_(torch.nan)
    assert scores_of(banks, backbone) == {}


def test_settings_out_of_range_are_all_named():
    with pytest.raises(SettingsError) as caught:
        WatchSettings(every=-1, neighbours=0, temperature=0, max_images=1, probe=1)
    assert caught.value.problems == [
        "watch.every must be at least 0, got -1",
        "watch.neighbours must be at least 1, got 0",
        "watch.temperature must be above 0, got 0",
        "watch.max_images must be at least 2, got 1",
        "watch.probe must be 0 or at least 2, got 1",
    ]


# Records and pictures

LOG = [
    {"stage": "teacher", "step": 0, "rank": 2.0, "knn": 0.1},
    {"stage": "teacher", "step": 3, "loss": 5.0},
    {"stage": "teacher", "step": 6, "loss": 4.0, "rank": 9.0, "knn": 0.4},
    {"stage": "distiller", "step": 1, "loss": 1.0, "knn": 0.9},
]
ABOUT = {"source": "digits", "target": "digits", "student": "ssdd_resnet10"}


def test_the_first_and_the_last_score_become_records():
    scored = [(record["set"], record["mean"], record["values"]) for record in knn_records(LOG, ABOUT)]
    assert scored == [("untrained", 0.1, [0.1]), ("teacher", 0.4, [0.4])]
    record = knn_records(LOG, ABOUT)[0]
    assert record.items() >= {**ABOUT, "protocol": "knn", "metric": "accuracy", "n": 1, "std": None}.items()
    assert knn_records([{"stage": "teacher", "step": 1, "loss": 2.0, "rank": 3.0}], ABOUT) == []


@pytest.mark.parametrize(("log", "panels"), [(LOG, 3), (LOG[1:2], 1)])
def test_the_picture_has_a_panel_for_each_curve(tmp_path, log, panels):
    render_training(tmp_path / "pictures" / "training.png", log)
    with Image.open(tmp_path / "pictures" / "training.png") as picture:
        assert picture.size[0] == pytest.approx(4.2 * 120 * panels, abs=2)
        assert picture.convert("L").getextrema()[0] < 128
