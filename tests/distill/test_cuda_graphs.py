"""How students come to the fixed memory that recordings need, tested on the CPU by a recording that calls again."""

import pytest
import torch
from test_distiller import build_distiller

from ssdd_hub.distill.engine import fast, stage
from ssdd_hub.distill.engine.cuda_graphs import WARM_UP, CannotRecord, copy_all, pack
from ssdd_hub.runs.checkpoints import load_tree, save_tree


class Again:
    """Does on the CPU what a CUDA graph does: the same work, from the same tensors to the same tensors."""

    def __init__(self, function):
        for _ in range(WARM_UP):
            function()
        self._function = function
        self._results = function()

    def __call__(self):
        results = self._function()
        for kept, new in zip(self._list(self._results), self._list(results), strict=True):
            kept.copy_(new)
        return self._results

    def _list(self, results):
        return results if isinstance(results, tuple) else (results,)


@pytest.fixture
def recorded(monkeypatch):
    """Builds distillers whose steps are recorded."""
    for module in (stage, fast):
        monkeypatch.setattr(module, "Recorded", Again)
    side_stream = fast.SideStream
    monkeypatch.setattr(fast, "SideStream", lambda on: side_stream(False))

    def build(**settings):
        distiller = build_distiller(**settings)
        distiller.engine._recording = distiller.engine._recording_gradients = True
        return distiller

    return build


def run(distiller, steps):
    return [
        (float(record["loss"]), float(record["inner_loss"])) for record in (distiller.step() for _ in range(steps))
    ]


@pytest.mark.parametrize("settings", [{}, {"inner_steps": 2}, {"max_age": 1}, {"micro_batch": 2}])
def test_a_recorded_run_is_the_usual_one_through_renewals(recorded, settings):
    ours, theirs = recorded(**settings), build_distiller(**settings)
    assert run(ours, 9) == run(theirs, 9)
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.targets, theirs.targets)
    assert ours.pool.ages == theirs.pool.ages
    for mine, other in zip(ours.pool.students, theirs.pool.students, strict=True):
        for name, value in other.module.state_dict().items():
            assert torch.equal(mine.module.state_dict()[name], value), name


def test_a_resumed_recorded_run_goes_on_as_the_unbroken_one(recorded, tmp_path):
    # Students that have a momentum are to take many more steps after it.
    unbroken, stopped, resumed = (recorded(max_age=50) for _ in range(3))
    run(unbroken, 5), run(stopped, 5), run(resumed, 3)
    save_tree(tmp_path / "state.safetensors", stopped.state_dict())
    resumed.load_state_dict(load_tree(tmp_path / "state.safetensors"))
    assert run(resumed, 6) == run(unbroken, 6)
    assert torch.equal(resumed.images, unbroken.images)


def test_other_parts_are_recorded_anew(recorded):
    ours = recorded()
    run(ours, 2)
    state = ours.state_dict()
    ours.load_state_dict({**state, "engine": {"parts": {"size": 2, "recompute": True}}})
    sizes = []
    by_parts = ours.engine._by_parts
    ours.engine._by_parts = lambda *given: (sizes.append(given[-1].size), by_parts(*given))[1]
    run(ours, 2)
    assert set(sizes) == {2}


def test_what_cannot_be_recorded_goes_on_launch_by_launch(recorded, monkeypatch, caplog):
    def refuse(function):
        function()
        raise CannotRecord("it waits")

    # Also where only one of the two cannot: the other goes on with its recording.
    for modules in ((stage,), (fast,), (stage, fast)):
        with monkeypatch.context() as patch:
            for module in modules:
                patch.setattr(module, "Recorded", refuse)
            ours, theirs = recorded(), build_distiller()
            caplog.clear()
            assert run(ours, 5) == run(theirs, 5)
            assert caplog.text.count("it waits; ") == len(modules)


def test_a_run_goes_on_without_recording_from_any_step(recorded):
    ours, theirs = recorded(), build_distiller()
    first = run(ours, 3)
    ours.disable_cuda_graphs()
    assert first + run(ours, 3) == run(theirs, 6)


def test_a_full_memory_records_again_in_smaller_parts(recorded):
    ours, theirs = recorded(), build_distiller()
    by_parts = ours.engine._by_parts

    def fit_three(*given):
        if given[-1].size > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return by_parts(*given)

    ours.engine._by_parts = fit_three
    torch.testing.assert_close(run(ours, 4), run(theirs, 4), rtol=1e-9, atol=0)
    assert ours.parts.size <= 3


def test_a_student_of_another_optimiser_is_seen_as_it_is_after_its_step(recorded):
    ours, theirs = recorded().method, build_distiller().method
    pairs, found = build_distiller().parameterisation().detached(), []
    for method in (ours, theirs):
        engine, student = method.problem.engine, method.pool.student(method.pool.draw(0))
        method.gradients(pairs, 0)
        engine.regression_step(student, torch.optim.AdamW(student.parameters(), lr=0.1), pairs)
        found.append(method.gradients(pairs, 0))
    assert all(torch.equal(mine, other) for mine, other in zip(*found, strict=True))


def test_packed_tensors_keep_values_and_strides_and_move_with_their_block():
    layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    tensors = [*layer.parameters(), torch.tensor([7]), torch.ones(2, 5).T]
    before = [(tensor.detach().clone(), tensor.stride()) for tensor in tensors]
    blocks = pack(tensors)
    assert [block.dtype for block in blocks] == [torch.float32, torch.int64]
    assert blocks[0].numel() == 4 * 27 + 4 + 10
    for tensor, (value, stride) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, value) and tensor.stride() == stride
    copy_all(blocks, [torch.zeros_like(block) for block in blocks])
    assert all(not tensor.detach().any() for tensor in tensors)
