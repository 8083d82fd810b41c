import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from ssdd_hub.sets.audit import auc_with_interval, audit, directions, draw_closest, start_places, tell_audit
from ssdd_hub.sets.similarity import nearest, standardise

KNOWN = {"source": {"name": "digits", "fingerprint": "a" * 64}}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return functional.normalize(draw(*shape, seed=seed))


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_the_area_is_that_of_scikit_learn_and_its_interval_that_of_a_bootstrap(shift):
    positives, negatives = draw(150, seed=1) + shift, draw(220, seed=2)
    area, low, high = auc_with_interval(positives, negatives)
    labels = np.r_[np.ones(150), np.zeros(220)]
    assert area == pytest.approx(roc_auc_score(labels, torch.cat([positives, negatives])), abs=1e-4)
    chance = np.random.default_rng(0)
    draws = [
        roc_auc_score(labels, np.r_[chance.choice(positives, 150), chance.choice(negatives, 220)]) for _ in range(800)
    ]
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.012)


def test_the_interval_covers_the_area_where_few_scores_lie_apart():
    generator = torch.Generator().manual_seed(0)
    for members, others, known in [(2, 2, 0.9), (5, 5, 0.7), (10, 300, 0.9), (30, 30, 0.0)]:
        # A share of the members is given away, and the rest are like the others.
        covered = 0
        for _ in range(300):
            away = 9.0 * (torch.rand(members, generator=generator) < known)
            positives = torch.randn(members, generator=generator) + away
            _, low, high = auc_with_interval(positives, torch.randn(others, generator=generator))
            covered += low <= known + (1 - known) / 2 <= high
        assert covered / 300 > 0.9


def test_groups_that_lie_apart_have_the_interval_of_as_many_draws_that_all_succeed():
    for members, others in [(1, 1), (2, 2), (10, 2000)]:
        found = auc_with_interval(torch.ones(members), torch.zeros(others))
        fewest = min(members, others)
        expected = binomtest(fewest, fewest).proportion_ci(0.95, "wilson").low
        assert found == pytest.approx([1.0, expected, 1.0], abs=1e-4)
        told = tell_audit({"pixels": {"auc": found}})[0]
        assert ("not measurably better" in told) == (fewest < 4)


def test_features_are_seen_from_the_centre_of_members_and_others():
    images, member, other = (draw(1, 6, seed=seed) * 0.1 + 5 for seed in (1, 2, 3))
    found = audit(*directions(member + 0.01 * (images - 5), member, other))
    assert found["auc"][0] == 1.0
    middle = (member + other) / 2
    expected = [functional.cosine_similarity(part - middle, images - middle) for part in (member, other)]
    seen = directions(images, member, other, other)
    torch.testing.assert_close([(part @ seen[0].T)[0] for part in seen[1:]], [*expected, expected[1]])


def test_equal_scores_count_half():
    assert auc_with_interval(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]))[0] == 0.75


def test_a_set_of_source_images_gives_its_members_away():
    members, others = unit(60, 40, seed=1), unit(60, 40, seed=2)
    found = audit(members[:20], members, others, starts=members[:20])
    assert found["auc_starts"][0] == 1.0 and found["nearest"]["member_nearer"][0] == 1.0
    # A third of the members are in the set; of the others nothing is known.
    assert found["auc"][0] == pytest.approx(1 / 3 + 2 / 3 / 2, abs=0.1)
    assert found["nearest"]["member"] == 1.0 > found["nearest"]["heldout"]
    assert found["members"] == found["heldout"] == 60


def test_a_set_that_has_nothing_to_do_with_its_source_gives_nothing_away():
    found = audit(unit(50, 30, seed=3), unit(300, 30, seed=1), unit(300, 30, seed=2))
    area, low, high = found["auc"]
    assert low <= 0.5 <= high and low <= area <= high and "auc_starts" not in found
    share, least, most = found["nearest"]["member_nearer"]
    assert least <= 0.5 <= most


def test_an_audit_is_told_in_sentences_and_a_strange_record_in_none():
    found = audit(unit(20, 10, seed=1), unit(20, 10, seed=1), unit(20, 10, seed=2), unit(5, 10, seed=1))
    told = tell_audit({"pixels": found, "teacher": found})
    assert len(told) == 4 and all("0.5 is chance" in sentence for sentence in told)
    assert "better than chance" in told[1] and "images that the set started from" in told[1]
    for strange in ({}, {"pixels": 3}, {"pixels": {"auc": [0.5, "<b>", 1]}}, {"pixels": {"auc": [0.5, 2, 1]}}):
        assert tell_audit(strange) == []


def test_places_that_a_set_started_from_are_read_from_an_untrusted_record():
    def read(indices):
        places = start_places({**KNOWN, "start": {"init": "random", "indices": indices}}, 10)
        return None if places is None else places.tolist()

    assert read([3, 1, 3]) == [1, 3] and read([[3, 1], [9, 0]]) == [0, 1, 3, 9]
    for strange in (None, [], [10], [-1], ["a"], [[1], [True]], [1.5], "12", {"a": 1}, [[[1]]]):
        assert read(strange) is None
    assert start_places({**KNOWN, "start": 3}, 10) is None
    # Of images that nothing identifies.
    assert start_places({"start": {"init": "random", "indices": [3]}}, 10) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_shows_each_image_above_the_nearest_real_one(channels):
    source = torch.randint(0, 256, (30, channels, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = source[[7, 3]] / 255
    similarity, place = nearest(images, source)
    assert place.tolist() == [7, 3]
    picture = draw_closest(images, source, similarity, place)
    scale = picture.height // 12
    column = np.asarray(picture)[::scale, : 6 * scale : scale].reshape(12, 6, channels).transpose(2, 0, 1)
    assert np.array_equal(column[:, :6], column[:, 6:])
    assert np.array_equal(column[:, 6:], source[place[similarity.argsort(descending=True)[0]]].numpy())


def test_unit_vectors_of_pixels_give_correlations():
    images = draw(4, 3, 5, 5)
    expected = np.corrcoef(images.flatten(1).numpy())
    np.testing.assert_allclose((standardise(images) @ standardise(images).T).numpy(), expected, atol=1e-5)
