"""Trajectory matching: loss and gradients, memory, experts, and resuming within their training."""

import dataclasses
import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import contract_cases, trajectory_numpy as witness
from reference.contract_cases import B, D, M
from reference.warm import Running, start_two

from ssdd_hub.distill.engine import EngineSettings, build_engine
from ssdd_hub.distill.estimate import time_distillation
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.methods.mkdt import Mkdt, MkdtSettings
from ssdd_hub.distill.methods.mtt import DatmSettings, MttSettings, TeslaSettings
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.runs.folder import RunFolder

WORKER = Path(__file__).parents[1] / "reference" / "mkdt_worker.py"
WIDTHS, SIDE = (3, 4), 4
SMALL = {"experts": 2, "expert_steps": 2, "unroll": 3, "unroll_batch": 4}
ERRORS = {"regression": witness.squares, "hard-labels": witness.hard_labels, "soft-labels": witness.soft_labels(10.0)}


def make_pairs(count, seed):
    """Corners of the contract's images: the witness is slow."""
    images, targets = contract_cases.make_pairs(count, seed)
    return Pairs(images[:, :, :SIDE, :SIDE], targets)


def batches(step, rank=0, world=1):
    return make_pairs(B, step)


@pytest.fixture
def make(accelerator):
    """Builds MKDT on the contract's real batches, with the paper's kind of network."""

    def make(folder=None, seed=0, **settings):
        engine = build_engine(EngineSettings(precision="float64"), accelerator)
        problem = Problem(
            batches, lambda: ConvNet(WIDTHS, "instance", 1, SIDE, D), engine, B, seed=seed, folder=folder
        )
        return Mkdt(MkdtSettings(**{**SMALL, **settings}), problem)

    return make


@pytest.fixture
def trained(make):
    """As `make`, with its experts."""

    def trained(*given, **settings):
        method = make(*given, **settings)
        losses = list(method.prepare(make_pairs(M, 99)))
        assert len(losses) == method.preparation()
        return method

    return trained


def slope_of(task="regression"):
    """The witness's gradient of a student in its weights."""

    def slope(weights, images, targets):
        arrays = witness.unpack(weights, WIDTHS, 1, WIDTHS[-1] * (SIDE // 4) ** 2, D)
        return witness.error_and_slope(arrays, images, targets, ERRORS[task])[1]

    return slope


def episode_of(method, step, count=M):
    """What the witness needs of an outer step."""
    drawn = method._draw(step, count)
    return drawn.start.numpy(), drawn.goal.numpy(), [rows.numpy() for rows in drawn.batches]


# Loss and gradients


@pytest.mark.parametrize("task", ERRORS)
@pytest.mark.parametrize("gradient", ["exact", "constant-memory"])
def test_loss_and_gradients_are_those_of_the_formulas(trained, task, gradient):
    method, pairs = trained(task=task, gradient=gradient), make_pairs(M, 99)
    loss, *found = method.gradients(pairs, 3)
    start, goal, rows = episode_of(method, 3)
    assert [len(each) for each in rows] == [4, 2, 4]
    given = (start, goal, slope_of(task), *(part.numpy() for part in pairs), rows, 0.1)
    np.testing.assert_allclose(loss, witness.distance(*given), rtol=1e-10)
    gradients = {"exact": witness.exact_gradients, "constant-memory": witness.constant_memory_gradients}[gradient]
    for ours, theirs in zip((*found, method._slope), gradients(*given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8 * max(abs(theirs).max(), 1e-3))
    assert found[1].any() == (task != "hard-labels")


def test_an_unroll_of_three_steps_has_the_slope_of_finite_differences(trained):
    method, pairs = trained(), make_pairs(M, 99)
    _, *found = method.gradients(pairs, 0)
    draw, width = torch.Generator().manual_seed(0), 1e-5
    for place, (part, gradient) in enumerate(zip(pairs, found, strict=True)):
        for _ in range(5):
            towards = torch.randn(part.shape, generator=draw, dtype=torch.float64)
            ends = []
            for side in (1, -1):
                moved = [*pairs]
                moved[place] = part + side * width * towards
                ends.append(method.loss(Pairs(*moved), 0).item())
            slope = (ends[0] - ends[1]) / (2 * width)
            assert slope == pytest.approx((gradient * towards).sum().item(), rel=1e-6, abs=1e-9)
    rate, slope = method.step_size, method._slope
    ends = []
    for side in (1, -1):
        method.step_size = rate + side * width
        ends.append(method.loss(pairs, 0).item())
    assert (ends[0] - ends[1]) / (2 * width) == pytest.approx(slope.item(), rel=1e-6)


def test_the_gradient_in_constant_memory_errs_by_a_part_that_vanishes_with_the_step_size(trained, capsys):
    shares = []
    for step_size in (0.1, 1e-3, 1e-4):
        exact, constant = (
            trained(gradient=name, unroll=10, step_size=step_size).gradients(make_pairs(M, 99), 0)
            for name in ("exact", "constant-memory")
        )
        torch.testing.assert_close(exact[0], constant[0], rtol=1e-12, atol=0)
        shares.append(float((constant[1] - exact[1]).norm() / exact[1].norm()))
    with capsys.disabled():
        print(
            f"\n10 steps of size 0.1, 1e-3, 1e-4: relative differences {', '.join(f'{each:.2g}' for each in shares)}"
        )
    assert shares[0] > 1e-2
    assert shares[1] / shares[2] == pytest.approx(10, rel=0.2)


class Peak:
    """Bytes that autograd holds for backward passes, at most, at a time."""

    def __init__(self):
        self.now = self.most = 0

    def __enter__(self):
        peak = self

        class Held:
            def __init__(self, tensor):
                self.tensor, self.size = tensor, tensor.nbytes
                peak.now += self.size
                peak.most = max(peak.most, peak.now)

            def __del__(self):
                peak.now -= self.size

        self.hooks = torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


def test_the_memory_of_a_gradient_does_not_grow_with_the_steps(trained):
    pairs, peaks = make_pairs(M, 99), {}
    for gradient in ("exact", "constant-memory"):
        for unroll in (2, 16):
            method = trained(gradient=gradient, unroll=unroll)
            with Peak() as peak:
                method.gradients(pairs, 0)
            peaks[gradient, unroll] = peak.most
            with Peak() as peak:
                kept = method.loss(pairs.leaves(), 0)
            peaks["graph", unroll] = peak.most
            del kept
    # The same graph of one inner step, for the same number of images.
    assert peaks["exact", 2] == peaks["exact", 16] == peaks["constant-memory", 2] == peaks["constant-memory", 16] > 0
    assert peaks["graph", 16] > 6 * peaks["graph", 2]


def test_targets_move_only_in_steps_of_small_loss(trained):
    pairs = make_pairs(M, 99)
    loss, images, targets = trained(task="soft-labels").gradients(pairs, 0)
    for limit, moves in ((loss.item() * 1.01, True), (loss.item() * 0.99, False)):
        method = trained(task="soft-labels", learn_targets_below=limit)
        found = method.gradients(pairs, 0)
        assert torch.equal(found[1], images)
        assert torch.equal(found[2], targets if moves else torch.zeros_like(targets))
        leaves = pairs.leaves()
        (slope,) = torch.autograd.grad(
            method.loss(leaves, 0), leaves.targets, allow_unused=True, materialize_grads=True
        )
        torch.testing.assert_close(slope, found[2], rtol=1e-9, atol=1e-13)


def test_the_step_size_is_learned_by_sgd(trained):
    method, pairs = trained(lr_step_size=1e-3, momentum_step_size=0.5), make_pairs(M, 99)
    rate, speed = 0.1, 0.0
    for step in range(3):
        method.gradients(pairs, step)
        speed = 0.5 * speed + method._slope.item()
        rate -= 1e-3 * speed
        logged = method.after_step(pairs, step)
        assert logged["step_size"].item() == pytest.approx(rate, rel=1e-12)
    assert rate != 0.1 and method.learned() == {"learning_rate": pytest.approx(rate, rel=1e-12)}
    assert trained(lr_step_size=0.0).learned() == {}
    assert trained(lr_step_size=0.0, task="soft-labels", label_scale=4.0).learned() == {"label_scale": 4.0}


# What a step draws


def test_every_expert_is_taken_in_turn_from_all_starts(make):
    method = make(experts=3, max_start=3, expert_epochs=4)
    drawn = [method._start(step) for step in range(60)]
    for first in range(0, 60, 3):
        assert {expert for expert, _ in drawn[first : first + 3]} == {0, 1, 2}
    assert {epoch for _, epoch in drawn} == {0, 1, 2}
    one = make(experts=1)
    assert {one._start(step)[0] for step in range(20)} == {0}


def test_the_starts_widen(make):
    method = make(min_start=1, first_max_start=2, max_start=5, growth_steps=300, expert_epochs=6)
    early, middle, late = ({method._start(step)[1] for step in range(first, first + 99)} for first in (0, 100, 400))
    assert (early, middle, late) == ({1}, {1, 2}, {1, 2, 3, 4})


def test_the_images_of_an_unroll_are_parts_of_random_orders(trained):
    rows = trained(unroll=4)._draw(0, M).batches
    assert [len(each) for each in rows] == [4, 2, 4, 2]
    assert all(sorted(torch.cat(rows[start : start + 2]).tolist()) == list(range(M)) for start in (0, 2))
    assert not torch.equal(rows[0], rows[2])


# Experts


def test_experts_are_those_of_sgd_on_real_batches(trained):
    settings = {"expert_momentum": 0.9, "expert_weight_decay": 1e-2, "expert_learning_rate": 0.05}
    experts = trained(**settings).experts
    for expert in (0, 1):
        for epoch in (1, 3):
            seen = [tuple(part.numpy() for part in batches(6 * expert + step)) for step in range(2 * epoch)]
            first = experts.weights(expert, 0).numpy()
            expected = witness.train(first, slope_of(), seen, 0.05, 0.9, 1e-2)
            np.testing.assert_allclose(experts.weights(expert, epoch), expected, rtol=1e-9, atol=1e-12)
    assert not torch.equal(experts.weights(0, 0), experts.weights(1, 0))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_experts_in_files_are_those_in_memory(trained, tmp_path):
    memory, files = trained(), trained(tmp_path)
    assert sorted(contents(tmp_path)) == [f"expert-0000{k}-00{e}.safetensors" for k in range(2) for e in range(4)]
    assert files.state_dict()["experts"] == {} and len(memory.state_dict()["experts"]) == 2
    for one, other in zip(memory.gradients(make_pairs(M, 9), 1), files.gradients(make_pairs(M, 9), 1), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("stop", range(1, 13))
def test_training_goes_on_exactly_after_any_step(make, trained, tmp_path, stop):
    whole = make(tmp_path / "whole")
    losses = list(whole.prepare(make_pairs(M, 99)))
    first = make(tmp_path / "stopped").prepare(make_pairs(M, 99))
    assert [next(first) for _ in range(stop)] == losses[:stop]
    resumed, trained_again = make(tmp_path / "stopped"), []
    step = resumed.experts._step
    resumed.experts._step = lambda *given: trained_again.append(1) or step(*given)
    assert list(resumed.prepare(make_pairs(M, 99))) == losses
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    # From the last whole epoch, of two steps, on; an epoch ends when the step after it is asked for.
    assert len(trained_again) == 12 - (stop - 1) // 2 * 2


def test_a_damaged_file_is_made_again_with_a_warning(make, trained, tmp_path, caplog):
    trained(tmp_path)
    before, path = contents(tmp_path), tmp_path / "expert-00001-002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(InputError, match="expert 1 after epoch 2 cannot be read .*remove checkpoints/distiller"):
        make(tmp_path).experts.weights(1, 2)
    trained(tmp_path)
    assert contents(tmp_path) == before and "the expert is trained again" in caplog.text


def test_experts_that_diverge_are_not_kept(make, tmp_path):
    with pytest.raises(InputError, match=r"expert 0 diverges in epoch \d: lower the method's expert_learning_rate"):
        list(make(tmp_path, expert_learning_rate=1e25, expert_steps=8).prepare(make_pairs(M, 99)))
    assert "expert-00000-003.safetensors" not in contents(tmp_path)


def test_without_experts_nothing_is_computed_but_rehearsals(make, tmp_path):
    pairs = make_pairs(M, 99)
    for method in (make(), make(tmp_path)):
        with pytest.raises(InputError, match="expert . after epoch . cannot be read .*Distiller.warm_up"):
            method.gradients(pairs, 0)
    method.rehearse()
    assert method.gradients(pairs, 0)[0] > 0 and not contents(tmp_path)


def test_an_estimate_times_steps_without_experts(accelerator, tmp_path):
    run = RunFolder(tmp_path / "run", {})
    run.start()
    stages = list(time_distillation(contract_cases.build("mkdt", "pixels", accelerator), run))
    assert [(stage.name, stage.steps) for stage in stages] == [("warm-up", 12), ("distillation", 10)]


# Settings


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"expert_epochs": 2}, "expert_epochs must be at least the last start and match_epochs, 3, got 2"),
        ({"min_start": 2}, "max_start must be above method.args.min_start, 2, and at most .* got 2"),
        ({"first_max_start": 3}, "first_max_start must be above .*, 0, and at most method.args.max_start, 2, got 3"),
        ({"gradient": "tesla"}, "gradient must be one of exact, constant-memory, got 'tesla'"),
    ],
)
def test_epochs_that_do_not_fit_are_refused(settings, problem):
    with pytest.raises(SettingsError, match=problem):
        MkdtSettings(**settings)


def test_each_method_has_settings_of_its_own():
    assert TeslaSettings() == TeslaSettings(**{**dataclasses.asdict(MttSettings()), "gradient": "constant-memory"})
    assert {MkdtSettings().task, MttSettings().task, DatmSettings().task} == set(ERRORS)


@pytest.mark.parametrize("task", ["hard-labels", "soft-labels"])
def test_labelled_tasks_need_targets_of_labels(make, task):
    method = make(task=task)
    for labels in (torch.arange(21) % D, None):
        method.problem = replace(method.problem, source=contract_cases.make_source(labels=labels))
        if labels is None:
            with pytest.raises(
                InputError, match=f"the task {task} is for class labels as targets, .* or the method mkdt"
            ):
                method.prepare(make_pairs(M, 99))
        else:
            next(method.prepare(make_pairs(M, 99)))


def test_an_epoch_needs_a_length(make):
    with pytest.raises(InputError, match="give one to the problem, or set expert_steps"):
        make(expert_steps=None)


# Whole runs


def results(folder):
    """The files of a run; checkpoints of the distiller hold seconds, which differ."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "distiller"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The files of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    Running(WORKER, folder).finish()
    return results(folder)


@pytest.mark.slow
def test_a_run_killed_in_experts_and_steps_ends_with_the_same_files(tmp_path, unbroken):
    folder, kills = tmp_path / "run", 0
    for written in ("method/expert-00000-001*", "method/expert-00001-002*", "distiller/step-00000003*"):
        worker = Running(WORKER, folder)
        while worker.process.is_alive() and not [*folder.glob(f"checkpoints/{written}")]:
            time.sleep(0.001)
        worker.process.kill()
        status, _, errors = worker.wait()
        assert status in (0, -signal.SIGKILL), errors
        kills += status != 0
    Running(WORKER, folder).finish()
    assert results(folder) == unbroken and kills


def test_two_processes_share_the_files_of_one(tmp_path, unbroken):
    for running in start_two(WORKER, tmp_path / "run"):
        running.finish()
    whole, found = unbroken, results(tmp_path / "run")
    assert found.pop("images-0.safetensors") == found.pop("images-1.safetensors")
    assert found.keys() | {"images-0.safetensors"} == whole.keys()
    assert all(found[name] == whole[name] for name in found if "expert" in name)
    one, two = ([json.loads(line)["loss"] for line in each["log.jsonl"].splitlines()] for each in (whole, found))
    assert two == pytest.approx(one, rel=1e-8)
