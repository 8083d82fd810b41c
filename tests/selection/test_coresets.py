import numpy as np
import pytest
import torch

from ssdd_hub.errors import InputError
from ssdd_hub.selection import coresets
from ssdd_hub.selection.coresets import Points, herding, kcenter, kmeans

EXACT = {"exact": 1000, "iterations": 50, "batch_size": 16}
BATCHES = {**EXACT, "exact": 0}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def points(matrix):
    return Points(torch.arange(len(matrix)), lambda rows: matrix[rows])


def blobs(count=5, size=12, width=6):
    """Returns well separated blobs `(count * size, width)` in mixed order, and which blob each point is of."""
    order = torch.randperm(count * size, generator=torch.Generator().manual_seed(9))
    numbers = torch.arange(count).repeat_interleave(size)[order]
    return 100 * randn(count, width, seed=1)[numbers] + randn(count * size, width, seed=2), numbers


def no_copies(chosen, count, size):
    return chosen.shape == (count,) and len(set(chosen.tolist())) == count and 0 <= chosen.min() <= chosen.max() < size


@pytest.mark.parametrize("held", [True, False])
def test_points_are_those_of_the_rows_held_or_not(monkeypatch, held):
    monkeypatch.setattr(coresets, "_MOST_IN_PART", 4)
    monkeypatch.setattr(coresets, "MOST_HELD", 10**6 if held else 4 * 6 * 3)
    matrix, rows, read = randn(20, 2, 3), torch.arange(19, 2, -2), []
    given = Points(rows, lambda some: read.append(len(some)) or matrix[some])
    read.clear()
    assert torch.equal(torch.cat([part for _, part in given.parts()]), matrix[rows].flatten(1))
    assert sum(read) == (0 if held else len(rows)) and max(read, default=0) <= 4
    assert torch.equal(given[torch.tensor([3, 0])], matrix[rows[[3, 0]]].flatten(1))
    distances = (matrix[rows].flatten(1) - matrix[7].flatten()).double().norm(dim=1)
    torch.testing.assert_close(given.distances(matrix[7].flatten()).double(), distances, rtol=1e-5, atol=1e-6)
    assert given.distances(matrix[7].flatten())[6] == 0
    assert len(given.sample(5, 0)) == (len(rows) if held else 5)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_points_that_are_not_finite_are_refused(wrong):
    matrix = randn(20, 3)
    matrix[11, 1] = wrong
    with pytest.raises(InputError, match="targets hold NaN or infinite values"):
        points(matrix)


@pytest.mark.parametrize("effort", [EXACT, BATCHES])
def test_kmeans_chooses_the_middle_of_each_blob(effort):
    matrix, numbers = blobs()
    chosen = kmeans(points(matrix), 5, 0, **effort)
    assert sorted(numbers[chosen].tolist()) == [0, 1, 2, 3, 4]
    if effort is EXACT:
        for number in range(5):
            inside = (numbers == number).nonzero()[:, 0]
            middle = (matrix[inside] - matrix[inside].mean(0)).norm(dim=1).argmin()
            assert inside[middle] in chosen


def slow_nearest_free(matrix, centres):
    chosen = []
    for centre in centres.double().numpy():
        order = np.argsort(np.linalg.norm(matrix.double().numpy() - centre, axis=1))
        chosen.append(next(int(index) for index in order if index not in chosen))
    return chosen


@pytest.mark.parametrize("nearest", [1, 2, 16])
def test_centres_that_share_their_nearest_point_take_the_next(monkeypatch, nearest):
    monkeypatch.setattr(coresets, "_NEAREST", nearest)
    monkeypatch.setattr(coresets, "_MOST_IN_PART", 7)
    matrix = randn(40, 3) + 1000
    centres = matrix[:3].repeat(10, 1) + 1e-3 * randn(30, 3, seed=5)
    assert coresets._nearest_free(points(matrix), centres).tolist() == slow_nearest_free(matrix, centres)


def test_kmeans_of_a_sample_looks_at_all_points(monkeypatch):
    matrix, numbers = blobs(count=3, size=20)
    monkeypatch.setattr(coresets, "MOST_HELD", 4 * 6 * 30)
    chosen = kmeans(points(matrix), 3, 0, **EXACT)
    assert sorted(numbers[chosen].tolist()) == [0, 1, 2]


def slow_far(matrix, first, count):
    matrix, chosen = matrix.double().numpy(), [first]
    while len(chosen) < count:
        nearest = [min(np.linalg.norm(point - matrix[c]) for c in chosen) for point in matrix]
        chosen.append(int(np.argmax(nearest)))
    return chosen


def test_kcenter_is_the_greedy_choice(monkeypatch):
    monkeypatch.setattr(coresets, "_MOST_IN_PART", 7)
    matrix = randn(30, 4)
    chosen = kcenter(points(matrix), 12, 3).tolist()
    assert chosen == slow_far(matrix, chosen[0], 12)
    assert len({int(kcenter(points(matrix), 1, seed)) for seed in range(20)}) > 5


def slow_herding(matrix, count):
    matrix, chosen = matrix.double().numpy(), []
    for _ in range(count):
        errors = [
            np.inf if index in chosen else np.linalg.norm(matrix[[*chosen, index]].mean(0) - matrix.mean(0))
            for index in range(len(matrix))
        ]
        chosen.append(int(np.argmin(errors)))
    return chosen


@pytest.mark.parametrize("offset", [0, 50])
def test_herding_is_the_greedy_choice_and_nearer_to_the_mean_than_chance(monkeypatch, offset):
    monkeypatch.setattr(coresets, "_MOST_IN_PART", 7)
    matrix = randn(40, 4) + offset
    chosen = herding(points(matrix), 15)
    assert chosen.tolist() == slow_herding(matrix, 15)

    def error(rows):
        return (matrix[rows].double().mean(0) - matrix.double().mean(0)).norm()

    drawn = [torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:15] for seed in range(50)]
    assert error(chosen) < min(error(rows) for rows in drawn)


@pytest.mark.parametrize("kind", ["alike", "pairs", "one"])
@pytest.mark.parametrize(
    "choose",
    [
        lambda given, count: kmeans(given, count, 0, **EXACT),
        lambda given, count: kmeans(given, count, 0, **BATCHES),
        lambda given, count: kcenter(given, count, 0),
        herding,
    ],
)
def test_no_point_is_chosen_twice_also_among_equal_points(choose, kind):
    matrix = {"alike": torch.ones(30, 3), "pairs": randn(20, 3).repeat(2, 1), "one": randn(1, 3)}[kind]
    size = len(matrix)
    for count in {1, size // 2 + 5, size} if size > 1 else {1}:
        assert no_copies(choose(points(matrix.clone()), count), count, size)
