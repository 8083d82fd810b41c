"""The outer objective, and a whole distillation, against a second implementation in NumPy float64."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from reference import kernel_numpy, krrst_numpy as witness

from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.engine.ridge_solve import _RidgeSolution, invert_triangular
from ssdd_hub.distill.krr import Regression, Ridge, outer_loss, predict, solve_ridge
from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.models.convnet import ConvNet

NAMES = ("distilled_features", "targets", "real_features", "real_targets")
# M, F, B, D
SHAPES = {
    "more images than features": (7, 3, 5, 4),
    "many more images than features": (30, 5, 6, 3),
    "as many images as features and the constant": (6, 5, 6, 3),
    "more features than images": (4, 9, 6, 2),
    "one distilled image": (1, 5, 6, 3),
    "one real image": (5, 8, 1, 3),
    "one target": (5, 8, 6, 1),
    "all ones": (1, 1, 1, 1),
}


def make_arrays(shape, seed=0):
    m, f, b, d = shape
    source = np.random.default_rng(seed)
    return [source.standard_normal(size) for size in ((m, f), (m, d), (b, f), (b, d))]


def to_tensors(arrays, dtype=torch.float64):
    return [torch.tensor(array, dtype=dtype, requires_grad=True) for array in arrays]


def relative_error(ours, theirs):
    return np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)


# The outer objective


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_loss_and_all_gradients_are_those_of_the_witness(shape, ridge):
    """The witness always solves the system of the kernel, which has no ridge-less solution where M is large."""
    ridge = ridge or (1e-3 if shape[0] > shape[1] + 1 else 0.0)
    arrays = make_arrays(shape)
    loss, grads = witness.outer_problem(*arrays, ridge)
    tensors = to_tensors(arrays)
    assert Regression(*tensors[:2]).in_feature_space == (shape[0] > shape[1] + 1)
    ours = outer_loss(*tensors, ridge)
    assert ours.item() == pytest.approx(loss, rel=1e-9)
    for name, grad in zip(NAMES, torch.autograd.grad(ours, tensors), strict=True):
        assert relative_error(grad, grads[name]) <= 1e-9, name


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_other_forms_of_the_regression_are_those_of_the_witness(shape, constant):
    """The trace is differentiated, and the ridge is large enough for that to show."""
    arrays = make_arrays(shape)
    phi_s, phi_r = (np.pad(arrays[place], ((0, 0), (0, 1)), constant_values=constant) for place in (0, 2))
    given = (phi_s, arrays[1], phi_r, arrays[3], 0.3 * shape[0])
    loss, features, targets, _ = kernel_numpy.probe(*given, kernel_numpy.mean)
    tensors, form = to_tensors(arrays), Ridge(0.3, constant, detached=False)
    assert Regression(*tensors[:2], form).in_feature_space == (shape[0] > shape[1] + constant)
    ours = outer_loss(*tensors, form)
    assert ours.item() == pytest.approx(loss, rel=1e-9)
    for mine, theirs in zip(torch.autograd.grad(ours, tensors[:2]), (features[:, :-1], targets), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-9 * np.abs(theirs).max())


def test_the_solver_of_a_gpu_is_differentiated_like_that_of_the_cpu():
    torch.manual_seed(0)
    features, right = torch.randn(5, 9).double(), torch.randn(5, 2).double()
    leaves = [features.requires_grad_(), right.requires_grad_(), torch.tensor(0.3).double().requires_grad_()]
    ours, theirs = (
        torch.autograd.grad(solve(features @ features.T, right, leaves[2]).square().sum(), leaves)
        for solve in (_RidgeSolution.apply, solve_ridge)
    )
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-10)


def test_the_gradients_of_the_witness_are_those_of_finite_differences():
    arrays = make_arrays((4, 6, 5, 2))
    for trace_detached, ridge in ((True, 0.0), (False, 0.3)):
        grads = witness.outer_problem(*arrays, ridge, trace_detached)[1]
        for index, name in enumerate(NAMES):
            measured = witness.central_differences(
                lambda array, i=index, r=ridge: witness.outer_problem(*arrays[:i], array, *arrays[i + 1 :], r)[0],
                arrays[index],
            )
            assert relative_error(measured, grads[name]) <= 1e-7, name


def test_the_ridge_is_relative_to_the_trace_of_the_kernel_with_its_constant():
    """One image with features of norm 2 and the constant 1: the kernel is 5, and the ridge 0.2 adds 1."""
    features = torch.tensor([[0.0, 2.0]])
    assert predict(features, torch.tensor([[6.0]]), features, ridge=0.2).item() == pytest.approx(5.0)


@pytest.mark.parametrize("size", [1, 5, 32, 33, 64, 100, 130])
def test_a_triangular_matrix_is_inverted_by_blocks(size):
    torch.manual_seed(0)
    factor = torch.linalg.cholesky(torch.eye(size).double() + torch.ones(size, size))
    inverse = invert_triangular(factor)
    torch.testing.assert_close(inverse @ factor, torch.eye(size).double())
    assert torch.equal(inverse, inverse.tril())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_of_the_arguments_is_kept(dtype):
    tensors = to_tensors(make_arrays((5, 8, 6, 3)), dtype)
    loss = outer_loss(*tensors)
    assert loss.dtype == dtype and loss.shape == ()
    assert {grad.dtype for grad in torch.autograd.grad(loss, tensors)} == {dtype}
    expected = witness.outer_problem(*make_arrays((5, 8, 6, 3)), 1e-6)[0]
    assert loss.item() == pytest.approx(expected, rel=1e-3 if dtype == torch.float32 else 1e-9)


def test_a_kernel_without_full_rank_is_solved_in_float32():
    """M > F + 1 leaves only the ridge, here at the size of float32's rounding."""
    arrays = make_arrays((60, 3, 8, 2))
    loss = outer_loss(*to_tensors(arrays, torch.float32))
    assert loss.item() == pytest.approx(witness.outer_problem(*arrays, 1e-6)[0], rel=0.05)


@pytest.mark.parametrize(
    ("m", "targets", "real"),
    [((5, 8), (4, 3), (6, 8)), ((5, 8), (5, 3), (6, 7)), ((5, 8), (5,), (6, 8)), ((8,), (8, 3), (6, 8))],
)
def test_features_and_targets_that_do_not_fit_are_refused(m, targets, real):
    with pytest.raises(ValueError, match=r"\(M, F\), targets \(M, D\) and real features \(B, F\) are required, got"):
        predict(torch.zeros(m), torch.zeros(targets), torch.zeros(real))


@pytest.mark.parametrize("shape", [(6, 1), (1, 3), (6,), (5, 3)])
def test_real_targets_are_never_broadcast(shape):
    with pytest.raises(ValueError, match=r"real targets of shape \(6, 3\) \(B, D\) are required, got \("):
        outer_loss(torch.zeros(5, 8), torch.zeros(5, 3), torch.zeros(6, 8), torch.zeros(shape))


# The whole method

WIDTHS, M, B, D, SIZE = (3, 4), 5, 6, 3, 8
STEPS = 3


def make_student():
    torch.manual_seed(0)
    student = ConvNet(WIDTHS, "batch", 2, SIZE, D).double()
    # Fresh running statistics and affine weights would hide a mistake in them.
    for block in student.blocks:
        torch.nn.init.uniform_(block[1].weight, 0.5, 1.5)
        torch.nn.init.normal_(block[1].bias)
        block[1].running_mean.normal_()
        block[1].running_var.uniform_(0.5, 1.5)
    return student


def make_data(seed=3):
    source = np.random.default_rng(seed)
    batches = [(source.standard_normal((B, 2, SIZE, SIZE)), source.standard_normal((B, D))) for _ in range(STEPS)]
    return source.standard_normal((M, 2, SIZE, SIZE)), source.standard_normal((M, D)), batches


def test_features_of_the_student_are_those_of_the_witness():
    student, (images, _, _) = make_student(), make_data()
    odd = images[:, :, :7, :7]
    with torch.no_grad():
        assert relative_error(student.eval().features(torch.tensor(images)), _features(student, images)) <= 1e-12
        assert relative_error(student.features(torch.tensor(odd)), _features(student, odd)) <= 1e-12


def _features(student, images):
    return witness.forward(witness.to_network(student), images)[0]


def test_the_image_gradient_of_the_witness_is_that_of_finite_differences():
    network, (images, targets, batches) = witness.to_network(make_student()), make_data()
    images, targets = images[:2], targets[:2]
    _, gradient, _ = witness.image_gradient(network, images, targets, *batches[0], 1e-3)

    def loss(point):
        # The trace is a constant, so the ridge has to stay where it was.
        phi = witness.with_constant(witness.forward(network, images)[0])
        moved = witness.with_constant(witness.forward(network, point)[0])
        ridge = 1e-3 * np.trace(phi @ phi.T) / np.trace(moved @ moved.T)
        return witness.image_gradient(network, point, targets, *batches[0], ridge)[0]

    assert relative_error(witness.central_differences(loss, images), gradient) <= 1e-6


@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"ridge": 1e-6, "inner_steps": 2}, {"lr_images": 0.1, "lr_targets": 0.0}, {"micro_batch": 2}),
        {"micro_batch": 2, "memory_budget": 1e-9},
    ],
    ids=["plain", "two inner steps", "fixed targets", "micro-batches", "recomputed"],
)
def test_every_step_of_a_distillation_is_that_of_the_witness(settings):
    settings = {"lr_images": 0.02, "lr_targets": 0.01, "ridge": 1e-3, "inner_steps": 1, "final_lr": 0.1, **settings}
    student, (images, targets, batches) = make_student(), make_data()
    network = witness.to_network(student)
    pool = StudentPool(lambda: student, PoolSettings(size=1, warm_up=False), seed=0, dtype=torch.float64)
    distiller = Distiller(
        torch.tensor(images),
        torch.tensor(targets),
        pool,
        lambda step, rank, world: tuple(torch.tensor(part) for part in batches[step]),
        DistillerSettings(num_images=M, steps=4, batch_size=B, precision="float64", **settings),
        Accelerator(cpu=True),
    )
    recomputed = bool(settings.pop("micro_batch", None) and settings.pop("memory_budget", None))
    begun = copy.deepcopy(network)
    expected = witness.distil(network, images, targets, batches, steps=4, **settings)
    for loss, inner_loss, new_images, new_targets in expected:
        record = distiller.step()
        assert record["loss"].item() == pytest.approx(loss, rel=1e-9)
        assert record["inner_loss"].item() == pytest.approx(inner_loss, rel=1e-9)
        assert relative_error(distiller.images.detach(), new_images) <= 1e-9
        assert relative_error(distiller.targets.detach(), new_targets) <= 1e-9
    assert distiller.outer_step == STEPS and distiller.parts.recompute is recomputed
    after = witness.to_network(student)
    for ours, theirs, before in zip(after["blocks"], network["blocks"], begun["blocks"], strict=True):
        for name in ("weight", "gain", "shift", "mean", "var"):
            assert relative_error(ours[name], theirs[name]) <= 1e-9, name
            assert relative_error(ours[name], before[name]) > 1e-3, name
    assert relative_error(after["head_weight"], network["head_weight"]) <= 1e-9
