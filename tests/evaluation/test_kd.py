import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from timm.models import save_for_hf
from torch import Tensor

from ssdd_hub.data.augment import augment_dsa
from ssdd_hub.data.bank import ImageBank
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.evaluation.protocols import kd
from ssdd_hub.evaluation.protocols.base import EvaluationProtocol, Measure, Pretrained
from ssdd_hub.evaluation.protocols.finetune import FinetuneSettings, fine_tune, score, with_new_head
from ssdd_hub.evaluation.protocols.kd import KdSettings, KnowledgeDistillation, soft_cross_entropy, space_of, teach
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import draw_batch, generator, seeded
from ssdd_hub.selection.source import SourcePairs
from ssdd_hub.sets.pretrain import SetPairs
from ssdd_hub.teachers.teacher import Teacher

SPACE, OTHER = PixelSpace((0.4,), (0.3,)), PixelSpace((0.1,), (0.5,))


@dataclass
class MadePairs:
    """Images without more, in a space of their own."""

    images: Tensor
    pixel_space: PixelSpace = OTHER

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[indices], None


def make_bank(labels, seed=0, size=8):
    """Images of noise, brighter by 64 for each number of the class."""
    labels = torch.as_tensor(labels)
    noise = torch.randint(0, 64, (len(labels), 1, size, size), generator=generator(seed, "pixels"))
    pixels = (noise + 64 * labels.clamp_min(0)[:, None, None, None]).to(torch.uint8)
    return ImageBank(pixels, labels, None, {"fingerprint": str(seed)})


def make_data(labels=(0, 1, 2) * 20, heldout_labels=(0, 1, 2) * 10):
    return RealData("made", make_bank(labels, 1), make_bank(heldout_labels, 2), SPACE, torch.device("cpu"))


def make_network(seed=0, targets=3, norm="batch", widths=(4, 5)):
    with seeded(seed, "network"):
        network = ConvNet(widths, norm, 1, 8, targets)
        network.train()(torch.randn(16, 1, 8, 8))
    return network.eval()


def make_teacher():
    return Teacher(make_network(7, 0), OTHER, 8, "made")


def make_pairs(count=30, seed=5):
    return MadePairs(OTHER.normalise(torch.rand(count, 1, 8, 8, generator=generator(seed, "set"))))


def pretrained(student=None, pairs=None, seed=0):
    student = make_network() if student is None else student
    return Pretrained(student, lambda: student, make_pairs() if pairs is None else pairs, seed)


def accuracy_of(classifier, data):
    said = classifier(data.images(data.heldout), data.pixel_space)
    return (said.argmax(1) == data.heldout.labels).double().mean().item()


# The loss


def test_the_soft_cross_entropy_and_its_gradient_are_the_formula_s():
    outputs, taught = (torch.randn(5, 4, dtype=torch.float64, generator=generator(seed, "outputs")) for seed in (0, 1))
    outputs.requires_grad_()
    loss = soft_cross_entropy(outputs, taught, 2.5)
    (gradient,) = torch.autograd.grad(loss, outputs)

    def softmax(values):
        powers = np.exp(values - values.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    wanted, said = softmax(taught.numpy() / 2.5), softmax(outputs.detach().numpy() / 2.5)
    assert loss.item() == pytest.approx(-(wanted * np.log(said)).sum() / 5, rel=1e-12)
    np.testing.assert_allclose(gradient, (said - wanted) / 2.5 / 5, rtol=1e-12, atol=1e-15)


def test_a_class_without_probability_counts_nothing():
    outputs = torch.randn(2, 3, generator=generator(0, "outputs")).requires_grad_()
    taught = torch.tensor([[0.0, 0.0, -torch.inf], [1.0, -torch.inf, -torch.inf]])
    logs = outputs.log_softmax(1)
    expected = -((logs[0, 0] + logs[0, 1]) / 2 + logs[1, 0]) / 2
    loss = soft_cross_entropy(outputs, taught, 1.0)
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, outputs)[0].isfinite().all()


# The training


@pytest.mark.parametrize("augment", ["none", "dsa"])
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


def test_a_student_learns_to_imitate_a_classifier_of_its_own_kind():
    data = make_data()
    settings = FinetuneSettings(steps=60, batch_size=16, learning_rate=0.02, augment="none")
    classifier = make_network(1)
    fine_tune(classifier, data, torch.arange(60), settings, 0)
    # Mixtures, whose classes the student cannot know from elsewhere.
    noise = torch.rand(60, 1, 8, 8, generator=generator(0, "noise"))
    images = SPACE.normalise(0.3 * noise + 0.7 * torch.rand(60, 1, 1, 1, generator=generator(0, "brightness")))
    pairs, student = MadePairs(images, SPACE), make_network(2)
    wanted = classifier(images).argmax(1)
    assert (wanted.bincount(minlength=3) > 5).all()
    before = (student(images).argmax(1) == wanted).float().mean().item()
    teach(student, pairs, classifier, KdSettings(epochs=150, learning_rate=0.01, augment="none"), 0)
    assert before < 0.6 and (student(images).argmax(1) == wanted).float().mean().item() >= 0.95
    assert score(student, data, "kd") >= 0.9


def test_images_may_be_mirrored():
    pairs, seen = make_pairs(200), []

    def _classify(images):
        seen.append(images)
        return torch.zeros(len(images), 3)

    teach(make_network(), pairs, _classify, KdSettings(max_steps=1, augment="flip"), 0)
    real = pairs.images[draw_batch(200, 200, 0, "knowledge distillation", 0)]
    same, mirrored = ((seen[0] == shown).flatten(1).all(1) for shown in (real, real.flip(-1)))
    assert (same ^ mirrored).all() and 65 < same.sum() < 135


def test_divergence_is_reported():
    settings = KdSettings(max_steps=40, learning_rate=1e30, augment="none")
    with pytest.raises(InputError, match=r"diverges .*lower --kd\.learning-rate"):
        KnowledgeDistillation(settings, make_teacher())(pretrained(make_network(norm="none")), make_data())


# The classifier


def test_the_probe_is_scikit_learn_s_regression_on_the_teacher_s_features():
    data, teacher = make_data((0, 1, -1, 2) * 15), make_teacher()
    protocol = KnowledgeDistillation(KdSettings(ridge=0.01), teacher)
    known = data.train.labels >= 0
    features, tests = (teacher(bank.pixels.float() / 255) for bank in (data.train, data.heldout))
    witness = LogisticRegression(C=1 / (0.01 * 45), max_iter=10000, tol=1e-8)
    witness.fit(features[known].double(), data.train.labels[known])
    classifier = protocol.classifier(data)
    said = classifier(data.images(data.heldout), SPACE).softmax(1)
    np.testing.assert_allclose(said, witness.predict_proba(tests.double()), atol=2e-3)
    right = witness.score(tests.double(), data.heldout.labels)
    assert accuracy_of(protocol.classifier(data), data) == pytest.approx(right) and right > 0.6


def test_each_network_sees_the_same_image_in_its_own_space():
    """Pixels outside [0, 1] are not clipped."""
    protocol, data = KnowledgeDistillation(KdSettings(), make_teacher()), make_data()
    classifier = protocol.classifier(data)
    pixels = torch.rand(4, 1, 8, 8, generator=generator(0, "pixels")) * 3 - 1
    weight, bias = classifier.head
    expected = make_teacher().backbone(OTHER.normalise(pixels)) @ weight.T + bias
    for space in (SPACE, OTHER):
        torch.testing.assert_close(classifier(space.normalise(pixels), space), expected, rtol=1e-4, atol=1e-4)


def test_a_class_without_a_labelled_image_is_never_taught():
    data = make_data((0, 2) * 20, (0, 1, 2) * 10)
    protocol = KnowledgeDistillation(KdSettings(max_steps=3), make_teacher())
    said = protocol.classifier(data)(data.images(data.heldout), SPACE)
    assert said.shape == (30, 3) and (said[:, 1] == -torch.inf).all() and said[:, ::2].isfinite().all()
    assert accuracy_of(protocol.classifier(data), data) <= 2 / 3
    assert [one.metric for one in protocol(pretrained(), replace(data))] == ["accuracy"]


@pytest.fixture
def network_folder(tmp_path):
    """A classifier of three classes for images of 16 pixels, as timm stores it, and the network itself."""
    args = {"widths": (4, 5, 6), "img_size": 16, "in_chans": 1}
    network = make_stored(args)
    config = {"mean": (0.2,), "std": (0.7,), "input_size": (1, 16, 16), "interpolation": "bilinear"}
    network.pretrained_cfg = {**network.pretrained_cfg, **config}
    save_for_hf(network, tmp_path, model_args=args, safe_serialization=True)
    return f"local-dir:{tmp_path}", network


def make_stored(args):
    with seeded(0, "stored"):
        network = timm.create_model("ssdd_convnet3", num_classes=3, **args)
        network.train()(torch.randn(8, 1, 16, 16))
    return network.eval()


def test_a_stored_network_is_a_classifier_with_its_own_size_and_space(network_folder):
    name, network = network_folder
    data, protocol = make_data(), KnowledgeDistillation(KdSettings(classifier=name), None)
    images = data.images(data.heldout)
    pixels = data.heldout.pixels.float() / 255
    large = torch.nn.functional.interpolate(pixels, (16, 16), mode="bilinear", antialias=True).clamp(0, 1)
    expected = network((large - 0.2) / 0.7)
    classifier = protocol.classifier(data)
    assert classifier.num_classes == 3
    torch.testing.assert_close(classifier(images, SPACE), expected, rtol=1e-4, atol=1e-4)
    right = (expected.argmax(1) == data.heldout.labels).double().mean().item()
    assert accuracy_of(protocol.classifier(data), data) == pytest.approx(right)


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
    asked = [data, replace(data, heldout_targets=torch.zeros(30, 2))] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(protocol.classifier, asked))
    assert len(calls) == 1 and all(one is found[0] for one in found)
    assert protocol.classifier(make_data()) is not found[0] and len(calls) == 2


# The protocol


def test_it_measures_what_its_parts_do():
    data, pairs, teacher = make_data(), make_pairs(), make_teacher()
    settings = KdSettings(max_steps=20, learning_rate=0.01)
    protocol = KnowledgeDistillation(settings, teacher)
    assert isinstance(protocol, EvaluationProtocol)
    classifier = protocol.classifier(data)
    student = with_new_head(make_network(), 3, 4)
    teach(student, pairs, lambda images: classifier(images, OTHER), settings, 4)
    assert protocol(pretrained(pairs=pairs, seed=4), data) == [Measure("accuracy", score(student, data, "kd"))]


def test_a_student_may_be_tested_by_batch_statistics():
    # The second of two batches has bright images alone, which batch statistics make like the others.
    data = make_data(heldout_labels=[*(0, 1, 2) * 170, 2, 2, *[2] * 100])
    settings = KdSettings(max_steps=40, learning_rate=0.03, augment="none", student_mode="batch-statistics")
    protocol, pairs = (
        KnowledgeDistillation(settings, make_teacher()),
        SourcePairs(data.train, torch.zeros(60, 1), SPACE),
    )
    (found,) = protocol(pretrained(pairs=pairs), data)
    classifier, student = protocol.classifier(data), with_new_head(make_network(), 3, 0)
    teach(student, pairs, lambda images: classifier(images, SPACE), settings, 0)
    usual = score(student, data, "kd")
    assert KnowledgeDistillation(replace(settings, student_mode="eval"), make_teacher())(
        pretrained(pairs=pairs), data
    ) == [Measure("accuracy", usual)]
    student.train()
    with torch.no_grad():
        said = torch.cat([student(data.images(data.heldout, part)) for part in (slice(512), slice(512, None))])
    assert found.value == (said.argmax(1) == data.heldout.labels).double().mean().item()
    assert found.value < usual - 0.05


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


def test_it_applies_to_sets_and_to_targets_with_labels():
    protocol, student = KnowledgeDistillation(KdSettings(), make_teacher()), make_network()
    none = Pretrained(student, lambda: student, None, 0)
    assert protocol.applies(pretrained(), make_data())
    assert not protocol.applies(none, make_data())
    assert not protocol.applies(pretrained(), make_data((1, 1)))
    with pytest.raises(ValueError, match="check applies first"):
        protocol(none, make_data())


def test_a_set_of_one_image_is_enough():
    settings = KdSettings(epochs=3)
    assert settings.num_steps(1) == 3
    (found,) = KnowledgeDistillation(settings, make_teacher())(pretrained(pairs=make_pairs(1)), make_data())
    assert 0 <= found.value <= 1


def test_the_space_is_that_of_the_set_s_images():
    bank = make_bank([0, 1])
    assert space_of(SourcePairs(bank, torch.zeros(2, 3), SPACE)) is SPACE
    names = {"images": torch.zeros(1, 1, 8, 8), "targets": torch.zeros(1, 2), "views": None, "view_targets": None}
    assert space_of(SetPairs(SimpleNamespace(**names, pixel_space=OTHER))) is OTHER
    with pytest.raises(ValueError, match="pairs with a pixel_space are required, object has none"):
        space_of(object())


# Settings


def test_the_defaults_are_the_paper_s():
    settings = KdSettings()
    assert (settings.learning_rate, settings.weight_decay, settings.temperature) == (1e-4, 0.0, 1.0)
    assert (settings.epochs, settings.batch_size, settings.augment) == (1000, 512, "dsa")
    # Of 2,000 images as in table 4.
    assert settings.num_steps(2000) == 3906
    assert replace(settings, max_steps=10).num_steps(2000) == 10
    assert settings.num_steps(100) == 1000


def test_the_key_tells_settings_and_network_apart(network_folder):
    data, teacher = make_data(), make_teacher()
    other = Teacher(make_network(8, 0), OTHER, 8, "made")
    stored = KdSettings(classifier=network_folder[0])
    keys = [
        KnowledgeDistillation(settings, network).key(data)
        for settings, network in [
            (KdSettings(), teacher),
            (KdSettings(), other),
            (KdSettings(epochs=2), teacher),
            (stored, teacher),
        ]
    ]
    assert all(keys.count(key) == 1 for key in keys)
    assert KnowledgeDistillation(stored, None).key(data) == keys[3]


def test_every_wrong_setting_is_reported():
    with pytest.raises(SettingsError) as raised:
        KdSettings("probe", 0, 0, 0, 0, 0, -1, 0, "crop", "train")
    assert raised.value.problems == [
        "kd.ridge must be above 0, got 0",
        "kd.epochs must be at least 1, got 0",
        "kd.max_steps must be at least 1, got 0",
        "kd.batch_size must be at least 1, got 0",
        "kd.learning_rate must be above 0, got 0",
        "kd.weight_decay must be at least 0, got -1",
        "kd.temperature must be above 0, got 0",
        "kd.augment must be one of none, flip, dsa, got 'crop'",
        "kd.student_mode must be one of eval, batch-statistics, got 'train'",
    ]
