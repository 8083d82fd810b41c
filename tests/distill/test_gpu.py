"""What only a GPU shows: recordings, exact products of half precision, and that the host never waits."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from reference import contract_cases
from test_step_counts import cached_distiller

from ssdd_hub.distill.distiller import DistillerSettings
from ssdd_hub.distill.engine.krr_gradients import narrow_kernel
from ssdd_hub.distill.engine.ridge_solve import solve_ridge
from ssdd_hub.distill.krr import Regression, linear_kernel
from ssdd_hub.distill.pool import PoolSettings
from ssdd_hub.runs.checkpoints import load_tree, save_tree
from ssdd_hub.seeds import seeded_training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),
]
M, B, D = 24, 40, 16
DEVICE = "cuda"


@pytest.fixture(params=["no", "bf16"])
def accelerator(request):
    # Accelerate keeps the first precision of a process for good.
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    yield Accelerator(mixed_precision=request.param)
    AcceleratorState._reset_state(reset_partial_state=True)


def build(accelerator, recorded=True, compiled=True, max_age=4, **settings):
    settings = DistillerSettings(num_images=M, batch_size=B, steps=50, lr_images=1e-2, compile=compiled, **settings)
    pool = PoolSettings(size=3, max_age=max_age, learning_rate=0.01)
    distiller = cached_distiller(accelerator, settings, pool, (8, 16), 200, D)
    if not recorded:
        distiller.disable_cuda_graphs()
    for _ in distiller.warm_up():
        pass
    return distiller


def run(distiller, steps):
    records = [distiller.step() for _ in range(steps)]
    return [(record["loss"].item(), record["inner_loss"].item(), record["age"]) for record in records]


@pytest.mark.parametrize("inner_steps", [1, 2])
def test_a_recorded_run_is_the_one_that_launches_one_by_one(accelerator, inner_steps):
    """With renewals, whose students come to the same fixed memory."""
    ours, theirs = (build(accelerator, recorded, inner_steps=inner_steps) for recorded in (True, False))
    for first, second in zip(run(ours, 15), run(theirs, 15), strict=True):
        assert first == pytest.approx(second, rel=1e-5)
    torch.testing.assert_close(ours.images, theirs.images, rtol=1e-4, atol=1e-4)
    assert min(student.generation for student in ours.pool.students) >= 1


def test_a_compiled_run_is_that_of_the_cpu_up_to_precision(accelerator):
    if accelerator.mixed_precision == "bf16":
        pytest.skip("compared in float32")
    ours = run(build(accelerator), 6)
    AcceleratorState._reset_state(reset_partial_state=True)
    theirs = run(build(Accelerator(cpu=True), compiled=False), 6)
    for first, second in zip(ours, theirs, strict=True):
        assert first == pytest.approx(second, rel=1e-3)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_resumed_run_goes_on_as_the_unbroken_one(accelerator, tmp_path, compiled):
    unbroken, stopped, resumed = (build(accelerator, compiled=compiled, max_age=50) for _ in range(3))
    run(unbroken, 5), run(stopped, 5)
    save_tree(tmp_path / "state.safetensors", stopped.state_dict())
    run(resumed, 2)
    resumed.load_state_dict(load_tree(tmp_path / "state.safetensors"))
    for first, second in zip(run(resumed, 6), run(unbroken, 6), strict=True):
        assert first == pytest.approx(second, rel=1e-5)
    torch.testing.assert_close(resumed.images, unbroken.images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("recorded", "compiled"), [(True, True), (False, True), (False, False)])
def test_the_host_waits_for_nothing_in_a_step(accelerator, recorded, compiled):
    distiller = build(accelerator, recorded, compiled)
    run(distiller, 3)
    # A renewal makes a student on the host, whose copy is waited for.
    distiller.pool.settings = PoolSettings(size=3, max_age=1000)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            distiller.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("m", "f"), [(60, 200), (100, 33), (130, 2000)])
def test_the_regression_and_its_gradients_are_those_of_the_cpu(m, f):
    torch.set_float32_matmul_precision("highest")
    source = torch.Generator().manual_seed(1)
    shapes = ((m, f), (m, 7), (90, f), (90, 7))
    exact = [torch.randn(shape, generator=source).bfloat16().double() for shape in shapes]
    exact[0].requires_grad_(), exact[1].requires_grad_()
    loss = Regression(*exact[:2], 1e-3).loss(*exact[2:])
    expected = [loss, *torch.autograd.grad(loss, exact[:2])]
    for kernel in (linear_kernel, narrow_kernel):
        ours = [tensor.detach().float().cuda() for tensor in exact]
        ours[0].requires_grad_(), ours[1].requires_grad_()
        loss = Regression(*ours[:2], 1e-3, solve_ridge, kernel).loss(*ours[2:])
        for mine, theirs in zip([loss, *torch.autograd.grad(loss, ours[:2])], expected, strict=True):
            assert ((mine.double().cpu() - theirs).norm() / theirs.norm()).item() < 2e-4


@pytest.mark.parametrize("name", contract_cases.PARAMETERISATION_CLASSES)
def test_what_is_learned_gives_the_pairs_of_the_cpu_also_for_rows_that_the_cpu_drew(name):
    kind, pairs = contract_cases.PARAMETERISATION_CLASSES[name], contract_cases.make_pairs(contract_cases.M, 99)
    settings = contract_cases.settings_of(kind)
    theirs, ours = (kind.start(pairs.to(device, torch.float64), settings) for device in ("cpu", DEVICE))
    for rows in (None, torch.tensor([3, 0, 4])):
        for mine, wanted in zip(ours(rows), theirs(rows), strict=True):
            assert mine.device.type == DEVICE
            torch.testing.assert_close(mine.cpu(), wanted, rtol=1e-8, atol=1e-8)
        penalty = ours.penalty(rows)
        assert penalty is None or penalty.device.type == DEVICE
    for key, wanted in theirs.as_set().items():
        torch.testing.assert_close(ours.as_set()[key].cpu(), wanted, rtol=1e-8, atol=1e-8, msg=key)


def test_what_a_student_drops_follows_from_the_seed():
    student, images = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Dropout(0.5)).to(DEVICE), torch.ones(8, 64)
    masks = []
    for step in (1, 1, 2):
        torch.rand(9, device=DEVICE)
        with seeded_training(student, 0, "dropout", step):
            masks.append(student(images.to(DEVICE)) == 0)
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_a_kernel_that_cannot_be_factorised_gives_nan_and_not_a_wrong_solution():
    features = torch.ones(40, 100, device="cuda")
    targets = torch.ones(40, 2, device="cuda")
    assert Regression(features, targets, 0.0, solve_ridge).predict(features).isnan().all()


def test_a_full_memory_is_answered_by_smaller_parts(accelerator):
    distiller, whole = build(accelerator), build(accelerator)
    by_parts = copy.copy(distiller.engine._by_parts)

    def fit_ten(*given):
        if given[-1].size > 10:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return by_parts(*given)

    distiller.engine._by_parts = fit_ten
    for first, second in zip(run(distiller, 3), run(whole, 3), strict=True):
        assert first == pytest.approx(second, rel=1e-2)
    assert distiller.parts.size <= 10 and distiller.parts.recompute
