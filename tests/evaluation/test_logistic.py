"""The logistic regression, against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.protocols.logistic import fit_logistic
from ssdd_hub.seeds import generator


def hard_case(count, width, classes=10, seed=0, dtype=torch.float32):
    """Correlated features far from 0, classes of very different sizes, and no image of class 3."""
    numbers = generator(seed, "hard case")
    shares = 0.7 ** torch.arange(classes)
    shares[3] = 0
    labels = torch.multinomial(shares, count, replacement=True, generator=numbers)
    centres = torch.randn(classes, width, generator=generator(0, "centres of the hard case"))
    mixed = torch.randn(width, width, generator=generator(1, "mixing")) * 0.8 ** torch.arange(width)[:, None]
    features = 0.15 * centres[labels] + torch.randn(count, width, generator=numbers) @ mixed + 2
    return features.to(dtype), labels


def fit_sklearn(features, labels, ridge):
    # Its default, L-BFGS, stops on some processors where the weights are still 4e-4 from the minimum.
    regression = LogisticRegression(C=1 / (ridge * len(features)), max_iter=1000, tol=1e-10, solver="newton-cg")
    return regression.fit(features.double().numpy(), labels.numpy())


def predictions(linear, features):
    return (features @ linear[0].T + linear[1]).argmax(1)


@pytest.mark.parametrize("ridge", [1.0, 1e-2, 1e-3])
@pytest.mark.parametrize(("count", "width"), [(60, 90), (200, 30)], ids=["n < F", "n > F"])
def test_weights_are_those_of_scikit_learn(count, width, ridge):
    features, labels = hard_case(count, width, dtype=torch.float64)
    expected = fit_sklearn(features, labels, ridge)
    weight, bias = fit_logistic(features, labels, ridge, 10, tolerance=1e-13)
    present = torch.from_numpy(expected.classes_)
    assert 3 not in present and len(present) > 5
    np.testing.assert_allclose(weight[present], expected.coef_, atol=2e-4 * np.abs(expected.coef_).max())
    # The softmax does not see a constant that is added to all biases.
    ours, theirs = (part - part.mean() for part in (bias[present].numpy(), expected.intercept_))
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())
    absent = torch.tensor([label for label in range(10) if label not in present])
    assert (weight[absent] == 0).all() and (bias[absent] == -torch.inf).all()


@pytest.mark.parametrize(("count", "width"), [(60, 90), (200, 30)], ids=["n < F", "n > F"])
def test_the_default_tolerance_and_float32_change_no_accuracy(count, width):
    (features, labels), (test, truth) = hard_case(count, width), hard_case(3000, width, seed=5)
    for ridge in (1.0, 1e-2):
        expected = fit_sklearn(features, labels, ridge).predict(test.double().numpy()) == truth.numpy()
        right = predictions(fit_logistic(features, labels, ridge, 10), test) == truth
        assert 0.3 < expected.mean() < 0.95
        assert right.double().mean().item() == pytest.approx(expected.mean(), abs=0.002)


def test_a_start_changes_the_way_and_not_the_end():
    features, labels = hard_case(200, 30, dtype=torch.float64)
    cold = fit_logistic(features, labels, 1e-2, 10, tolerance=1e-13)
    start = fit_logistic(features, labels, 1e-1, 10)
    warm = fit_logistic(features, labels, 1e-2, 10, start, tolerance=1e-13)
    torch.testing.assert_close(warm[0], cold[0], atol=1e-4, rtol=1e-3)
    # No iteration: the start itself comes back.
    unmoved = fit_logistic(features, labels, 1e-1, 10, start, tolerance=1e9)
    torch.testing.assert_close(unmoved, start)


def test_one_class_is_always_predicted():
    weight, bias = fit_logistic(torch.randn(4, 3), torch.full((4,), 2), 1e-2, 4)
    assert weight.eq(0).all() and bias.argmax() == 2 and bias.isfinite().sum() == 1


def test_features_whose_squares_overflow_are_those_of_a_student_that_diverged():
    with pytest.raises(InputError, match="diverges"):
        fit_logistic(torch.randn(8, 4) * 1e25, torch.arange(8) % 2, 1e-3, 2)


def test_equal_features_leave_the_shares_of_the_classes():
    weight, bias = fit_logistic(
        torch.full((8, 3), 5.0), torch.tensor([0, 0, 0, 0, 0, 0, 2, 2]), 1e-2, 3, tolerance=1e-9
    )
    odds = (torch.full((3,), 5.0) @ weight.T + bias).softmax(0)
    torch.testing.assert_close(odds, torch.tensor([0.75, 0.0, 0.25]), atol=1e-3, rtol=0)
