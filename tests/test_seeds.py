import itertools
import threading
from collections import Counter

import pytest
import torch

from ssdd_hub.seeds import derive_seed, draw_batch, generator, seeded, seeded_training


def test_a_derived_seed_never_changes():
    """These numbers decide what a seed gives; a change would break the resumption of every run that has begun."""
    assert derive_seed(0, "draw", 7) == 1033647055084908353
    assert derive_seed(-1, "first ages") == 1653478356291321330


def test_seed_purpose_and_counters_each_matter():
    keys = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 0), (0, "a", 1, 2), (0, "a", 12)]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_of_one_point_agree_and_those_of_neighbours_are_unrelated():
    first, again = (torch.randn(1000, generator=generator(3, "noise", 5)) for _ in range(2))
    assert torch.equal(first, again)
    others = [torch.randn(1000, generator=generator(*key)) for key in ((4, "noise", 5), (3, "noise", 6), (3, "x", 5))]
    for one, other in itertools.combinations([first, *others], 2):
        # Five standard deviations of the correlation of 1,000 independent pairs.
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 5 / 1000**0.5


def test_seeded_seeds_the_global_generator_and_puts_it_back():
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    with seeded(1, "network", 2):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(inside, torch.rand(4, generator=generator(1, "network", 2)))
    # Also after an error.
    state = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(1, "network"):
        torch.rand(4)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("num_items", "batch_size"), [(10, 3), (10, 10), (3, 10), (1, 4), (7, 1), (4, 6)])
def test_batches_are_the_cuts_of_endlessly_repeated_shuffles(num_items, batch_size):
    steps = 3 * num_items
    drawn = torch.cat([draw_batch(num_items, batch_size, 0, "batch", step) for step in range(steps)])
    assert len(drawn) == steps * batch_size and drawn.dtype == torch.int64
    for epoch in drawn.split(num_items):
        assert sorted(epoch.tolist()) == list(range(num_items))


def test_a_batch_is_a_function_of_its_step_alone_and_epochs_seeds_and_purposes_shuffle_differently():
    in_order = [draw_batch(10, 3, 0, "batch", step) for step in (*range(8), 10**9)]
    backwards = [draw_batch(10, 3, 0, "batch", step) for step in (10**9, *reversed(range(8)))][::-1]
    assert all(map(torch.equal, in_order, backwards))
    orders = [draw_batch(50, 50, 0, "batch", 0), draw_batch(50, 50, 0, "batch", 1)]
    orders += [draw_batch(50, 50, 1, "batch", 0), draw_batch(50, 50, 0, "other", 0)]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(orders, 2))


def test_every_item_is_drawn_first_about_equally_often():
    firsts = Counter(draw_batch(5, 5, 0, "batch", step)[0].item() for step in range(1000))
    # 200, and five standard deviations of a binomial.
    assert all(abs(firsts[item] - 200) < 64 for item in range(5))


class Noisy(torch.nn.Module):
    """A layer with dropout; `share` 0 draws nothing."""

    def __init__(self, share):
        super().__init__()
        self.layer, self.dropout = torch.nn.Linear(64, 64), torch.nn.Dropout(share)

    def forward(self, x):
        return self.dropout(self.layer(x))


def test_what_a_student_draws_in_training_is_a_function_of_seed_purpose_and_counters():
    student, x = Noisy(0.5), torch.ones(8, 64)

    def mask(*key):
        torch.rand(int(torch.randint(1, 9, ())))
        with seeded_training(student, *key):
            return student(x) == 0

    first = mask(1, "dropout", 2)
    state = torch.get_rng_state()
    assert torch.equal(mask(1, "dropout", 2), first) and 0.3 < first.double().mean() < 0.7
    for other in ((2, "dropout", 2), (1, "x", 2), (1, "dropout", 3)):
        assert not torch.equal(mask(*other), first)
    torch.set_rng_state(state)
    expected = torch.rand(3)
    torch.set_rng_state(state)
    with seeded_training(student, 1, "dropout"):
        student(x)
    assert torch.equal(torch.rand(3), expected)


def test_students_that_draw_nothing_are_not_kept_waiting_and_others_take_turns():
    quiet, noisy, x = Noisy(0.0), Noisy(0.5), torch.ones(2, 64)
    for student in (quiet, noisy):
        with seeded_training(student, 0, "dropout"):
            student(x)
    running, entered = threading.Event(), {name: threading.Event() for name in ("quiet", "noisy")}

    def train(name, student):
        running.wait(10)
        with seeded_training(student, 0, "dropout"):
            entered[name].set()

    threads = [threading.Thread(target=train, args=each) for each in (("quiet", quiet), ("noisy", noisy))]
    for thread in threads:
        thread.start()
    with seeded(0, "a network is built"):
        running.set()
        assert entered["quiet"].wait(10)
        assert not entered["noisy"].wait(0.2)
    for thread in threads:
        thread.join()
    assert entered["noisy"].is_set()
