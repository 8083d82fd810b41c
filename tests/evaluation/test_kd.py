import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from evaluation_cases import OTHER, SPACE, MadePairs, bright_bank, bright_data, make_network, make_pairs
from sklearn.linear_model import LogisticRegression
from timm.models import save_for_hf

from ssdd_hub.data.augment import augment_dsa, draw_views
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.protocols import kd
from ssdd_hub.evaluation.protocols.base import Pretrained
from ssdd_hub.evaluation.protocols.finetune import score, with_new_head
from ssdd_hub.evaluation.protocols.kd import KdSettings, KnowledgeDistillation, soft_cross_entropy, space_of, teach
from ssdd_hub.seeds import draw_batch, generator, seeded
from ssdd_hub.selection.source import SourcePairs
from ssdd_hub.sets.pretrain import SetPairs
from ssdd_hub.teachers.teacher import Teacher

make_data = partial(bright_data, noise=64)


def pretrained(student=None, pairs=None, seed=0):
    student = student or make_network()
    return Pretrained(student, lambda: student, make_pairs() if pairs is None else pairs, seed)


def make_teacher():
    return Teacher(make_network(7, 0), OTHER, 8, "made")


def answers_of(protocol, data):
    """What the classifier of a target says of its held-out images, and its accuracy."""
    answers = protocol.classifier(data).outputs(data.heldout.pixels / 255)
    return answers, (answers.argmax(1) == data.heldout.labels).double().mean().item()


# The loss


def test_the_soft_cross_entropy_and_its_gradient_are_the_formula_s():
    outputs, taught = (torch.randn(5, 4, dtype=torch.float64, generator=generator(seed, "outputs")) for seed in (0, 1))
    outputs.requires_grad_()
    loss = soft_cross_entropy(outputs, taught, 2.5)
    (gradient,) = torch.autograd.grad(loss, outputs)

    def softmax(values):
        powers = np.exp(values - values.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    wanted, answers = softmax(taught.numpy() / 2.5), softmax(outputs.detach().numpy() / 2.5)
    assert loss.item() == pytest.approx(-(wanted * np.log(answers)).sum() / 5, rel=1e-12)
    np.testing.assert_allclose(gradient, (answers - wanted) / 2.5 / 5, rtol=1e-12, atol=1e-15)


def test_a_class_without_probability_counts_nothing():
    outputs = torch.randn(2, 3, generator=generator(0, "outputs")).requires_grad_()
    taught = torch.tensor([[0.0, 0.0, -torch.inf], [1.0, -torch.inf, -torch.inf]])
    logs = outputs.log_softmax(1)
    expected = -((logs[0, 0] + logs[0, 1]) / 2 + logs[1, 0]) / 2
    loss = soft_cross_entropy(outputs, taught, 1.0)
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, outputs)[0].isfinite().all()


# The training


@pytest.mark.parametrize("augment", ["none", "flip", "dsa"])
def test_it_is_the_loop_written_by_hand(augment):
    """AdamW at a cosine's rate, in float64, without torch's optimizer or schedule."""
    settings = KdSettings(max_steps=4, batch_size=7, learning_rate=0.01, weight_decay=0.1, augment=augment)
    student, classifier = make_network(0).double(), make_network(1).double()
    pairs, expected = MadePairs(make_pairs(10).images.double()), copy.deepcopy(student).train()
    first, second = ([torch.zeros_like(parameter) for parameter in expected.parameters()] for _ in range(2))
    for step in range(4):
        images = pairs.images[draw_batch(10, 7, 3, "knowledge distillation", step)]
        if augment == "dsa":
            images = augment_dsa(images, generator(3, "augmentation of knowledge distillation", step))
        elif augment == "flip":
            views = draw_views(7, generator(3, "augmentation of knowledge distillation", step))
            images = torch.where(views[:, 2, None, None, None] == 1, images.flip(-1), images)
        wanted = classifier(images).softmax(1).detach()
        loss = -(wanted * expected(images).log_softmax(1)).sum() / 7
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        rate = 0.01 * (1 + math.cos(math.pi * step / 4)) / 2
        with torch.no_grad():
            for parameter, gradient, mean, square in zip(expected.parameters(), gradients, first, second, strict=True):
                mean.mul_(0.9).add_(0.1 * gradient)
                square.mul_(0.999).add_(0.001 * gradient**2)
                parameter *= 1 - rate * 0.1
                slope = mean / (1 - 0.9 ** (step + 1))
                parameter -= rate * slope / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    trained = teach(student, pairs, classifier, settings, seed=3)
    assert not trained.training
    for (name, value), other in zip(trained.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-9, msg=name)


def test_divergence_is_reported():
    settings = KdSettings(max_steps=40, learning_rate=1e30, augment="none")
    with pytest.raises(InputError, match=r"diverges .*lower --kd\.learning-rate"):
        KnowledgeDistillation(settings, make_teacher())(pretrained(make_network(norm="none")), make_data())


# The classifier


def test_the_probe_is_scikit_learn_s_regression_on_the_teacher_s_features():
    data, teacher = make_data((0, 1, -1, 2) * 15), make_teacher()
    known = data.train.labels >= 0
    features, tests = (teacher(bank.pixels.float() / 255) for bank in (data.train, data.heldout))
    witness = LogisticRegression(C=1 / (0.01 * 45), max_iter=10000, tol=1e-8)
    witness.fit(features[known].double(), data.train.labels[known])
    answers, right = answers_of(KnowledgeDistillation(KdSettings(ridge=0.01), teacher), data)
    np.testing.assert_allclose(answers.softmax(1), witness.predict_proba(tests.double()), atol=2e-3)
    assert right == pytest.approx(witness.score(tests.double(), data.heldout.labels)) and right > 0.6


@pytest.mark.parametrize("space", [SPACE, OTHER])
def test_each_network_sees_the_same_image_in_its_own_space(space):
    """Pixels outside [0, 1] are not clipped."""
    data, teacher, student, seen, shown = make_data(), make_teacher(), make_network(), [], []
    protocol = KnowledgeDistillation(KdSettings(max_steps=1, augment="none"), teacher)
    protocol.classifier(data)
    whole = teacher.backbone.forward_features
    teacher.backbone.forward_features = lambda images: seen.append(images) or whole(images)
    student.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    pixels = torch.rand(4, 1, 8, 8, generator=generator(0, "pixels")) * 3 - 1
    protocol(pretrained(student, MadePairs(space.normalise(pixels), pixel_space=space)), data)
    first, second = OTHER.denormalise(seen[0]), space.denormalise(shown[0])
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second.flatten().sort().values, pixels.flatten().sort().values)


def test_a_class_without_a_labelled_image_is_never_taught():
    data = make_data((0, 2) * 20, (0, 1, 2) * 10)
    protocol = KnowledgeDistillation(KdSettings(max_steps=3), make_teacher())
    answers, right = answers_of(protocol, data)
    assert answers.shape == (30, 3) and (answers[:, 1] == -torch.inf).all() and answers[:, ::2].isfinite().all()
    assert right <= 2 / 3 and [one.metric for one in protocol(pretrained(), data)] == ["accuracy"]


@pytest.fixture
def network_folder(tmp_path):
    """A classifier of three classes for images of 16 pixels, as timm stores it, and the network itself."""
    args = {"widths": (4, 5, 6), "img_size": 16, "in_chans": 1}
    with seeded(0, "stored"):
        network = timm.create_model("ssdd_convnet3", num_classes=3, **args)
        network.train()(torch.randn(8, 1, 16, 16))
    config = {"mean": (0.2,), "std": (0.7,), "input_size": (1, 16, 16), "interpolation": "bilinear"}
    network.pretrained_cfg = {**network.pretrained_cfg, **config}
    save_for_hf(network.eval(), tmp_path, model_args=args, safe_serialization=True)
    return f"local-dir:{tmp_path}", network


def test_a_stored_network_is_a_classifier_with_its_own_size_and_space(network_folder):
    name, network = network_folder
    data, protocol = make_data(), KnowledgeDistillation(KdSettings(classifier=name), None)
    pixels = data.heldout.pixels.float() / 255
    large = torch.nn.functional.interpolate(pixels, (16, 16), mode="bilinear", antialias=True).clamp(0, 1)
    answers, _ = answers_of(protocol, data)
    torch.testing.assert_close(answers, network((large - 0.2) / 0.7), rtol=1e-4, atol=1e-4)
    assert protocol.classifier(data).num_classes == 3


def test_a_network_of_other_classes_is_refused(network_folder):
    protocol = KnowledgeDistillation(KdSettings(classifier=network_folder[0]), None)
    with pytest.raises(InputError, match=r"must tell the 2 classes of made, local-dir:.* tells 3: choose"):
        protocol.classifier(make_data((0, 1)))
    named = make_data()
    named.train.label_names = ["a", "b", "c", "d"]
    with pytest.raises(InputError, match="must tell the 4 classes"):
        protocol.classifier(named)


def test_a_classifier_that_cannot_be_had_is_reported(tmp_path):
    with pytest.raises(InputError, match=r"kd\.classifier 'no_such_network' cannot be built: .*Use probe"):
        KnowledgeDistillation(KdSettings(classifier="no_such_network"), None)
    with pytest.raises(InputError, match=r"reads a teacher's features, and there is none"):
        KnowledgeDistillation(KdSettings(), None)


def test_it_is_built_once_for_all_threads_and_for_data_with_other_targets(monkeypatch):
    calls, fit = [], kd.fit_logistic
    monkeypatch.setattr(kd, "fit_logistic", lambda *args: calls.append(1) or fit(*args))
    protocol, data = KnowledgeDistillation(KdSettings(), make_teacher()), make_data()
    data_of_both = [data, replace(data, heldout_targets=torch.zeros(30, 2))] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(protocol.classifier, data_of_both))
    assert len(calls) == 1 and all(one is found[0] for one in found)
    assert protocol.classifier(make_data()) is not found[0] and len(calls) == 2


# The protocol


def test_it_measures_what_its_parts_do():
    data, pairs, settings = make_data(), make_pairs(), KdSettings(max_steps=20, learning_rate=0.01)
    protocol, student = KnowledgeDistillation(settings, make_teacher()), with_new_head(make_network(), 3, 4)
    teach(student, pairs, lambda images: protocol.classifier(data).outputs(OTHER.denormalise(images)), settings, 4)
    assert protocol(pretrained(pairs=pairs, seed=4), data) == [score(student, data, "kd")]


def test_a_student_may_be_tested_by_batch_statistics():
    # The second of two batches has bright images alone, which batch statistics make like the others.
    data = make_data(heldout_labels=[*(0, 1, 2) * 170, 2, 2, *[2] * 100])
    settings = KdSettings(max_steps=40, learning_rate=0.03, augment="none", student_mode="batch-statistics")
    teacher, pairs = make_teacher(), SourcePairs(data.train, torch.zeros(60, 1), SPACE)
    protocol = KnowledgeDistillation(settings, teacher)
    (found,) = protocol(pretrained(pairs=pairs), data)
    classifier, student = protocol.classifier(data), with_new_head(make_network(), 3, 0)
    teach(student, pairs, lambda images: classifier.outputs(SPACE.denormalise(images)), settings, 0)
    usual = score(student, data, "kd")
    plain = KnowledgeDistillation(replace(settings, student_mode="eval"), teacher)
    assert plain(pretrained(pairs=pairs), data) == [usual]
    student.train()
    with torch.no_grad():
        answers = torch.cat([student(data.images(data.heldout, part)) for part in (slice(512), slice(512, None))])
    assert found.value == (answers.argmax(1) == data.heldout.labels).double().mean().item()
    assert found.value < usual.value - 0.05


def test_the_student_the_teacher_and_torch_s_generator_stay_as_they_are():
    student, teacher, data = make_network(), make_teacher(), make_data()
    before = [copy.deepcopy(module.state_dict()) for module in (student, teacher)]
    state = torch.random.get_rng_state()
    protocol = KnowledgeDistillation(KdSettings(max_steps=4, student_mode="batch-statistics"), teacher)
    first, again = (protocol(pretrained(student), data) for _ in range(2))
    assert first == again
    for module, kept in zip((student, teacher), before, strict=True):
        assert not module.training
        assert all(map(torch.equal, module.state_dict().values(), kept.values()))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_space_is_that_of_the_set_s_images():
    bank = bright_bank([0, 1])
    assert space_of(SourcePairs(bank, torch.zeros(2, 3), SPACE)) is SPACE
    names = {"images": torch.zeros(1, 1, 8, 8), "targets": torch.zeros(1, 2), "views": None, "view_targets": None}
    assert space_of(SetPairs(SimpleNamespace(**names, pixel_space=OTHER))) is OTHER
    with pytest.raises(ValueError, match="pairs with a pixel_space are required, object has none"):
        space_of(object())


# Settings


@pytest.mark.parametrize(("size", "steps"), [(2000, 3906), (100, 1000), (1, 1000)])
def test_the_defaults_give_the_steps_of_the_paper(size, steps):
    """Of 2,000 images as in table 4."""
    assert KdSettings().num_steps(size) == steps and KdSettings(max_steps=10).num_steps(size) == 10


def test_the_key_tells_settings_and_network_apart(network_folder):
    data, teacher, stored = make_data(), make_teacher(), KdSettings(classifier=network_folder[0])
    other = Teacher(make_network(8, 0), OTHER, 8, "made")
    cases = [(KdSettings(), teacher), (KdSettings(), other), (KdSettings(epochs=2), teacher), (stored, teacher)]
    keys = [KnowledgeDistillation(*case).key(data) for case in cases]
    assert all(keys.count(key) == 1 for key in keys)
    assert KnowledgeDistillation(stored, None).key(data) == keys[3]
