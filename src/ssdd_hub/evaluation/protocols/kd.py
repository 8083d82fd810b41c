"""Knowledge distillation without target data: a classifier of a target dataset teaches a student on a set's images.

The task of Lee et al. (ICLR 2024, table 4): the student sees only the classifier's outputs for images of the set.
"""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.bounds import Count, Positive, Settings, Weight, one_of
from ssdd_hub.data.augment import augment_dsa
from ssdd_hub.data.bank import ImageBank
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.protocols.base import LabelledProtocol, Measure, Pretrained, WholeNetwork
from ssdd_hub.evaluation.protocols.finetune import augmented, batch_statistics, descend, score, with_new_head
from ssdd_hub.evaluation.protocols.logistic import fit_logistic
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.features import read_pixel_space, shorten_error
from ssdd_hub.models.pretraining import Pairs
from ssdd_hub.models.stored_models import create_model
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import draw_batch, generator
from ssdd_hub.sets.pretrain import SetPairs
from ssdd_hub.teachers.teacher import Teacher

AUGMENTATIONS = ("none", "flip", "dsa")
STUDENT_MODES = ("eval", "batch-statistics")
PROBE = "probe"


@dataclass(frozen=True)
class KdSettings(Settings, section="kd"):
    """How a classifier teaches a student on a set's images; the defaults are those of Lee et al. (ICLR 2024).

    Attributes:
        classifier: `probe`, a logistic regression on the teacher's features of all labelled training images of the
            target; or a network with a head for its classes: a timm name, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.
        ridge: Weight of the L2 penalty of that regression; the paper has none, its classifier is a trained network.
        epochs: Passes over the set.
        max_steps: Steps at most, whatever the epochs.
        batch_size: Images per step; all of them where there are fewer.
        learning_rate: AdamW's, falling to 0 along a cosine.
        weight_decay: AdamW's.
        temperature: That the outputs of both networks are divided by.
        augment: `none`; `flip`: each image is mirrored half of the time; `dsa`: differentiable siamese augmentation.
        student_mode: How the student is tested: `eval`; or `batch-statistics`, normalised by each batch of 512 test
            images in their order, as in the released code, so that an answer depends on the other test images.
    """

    classifier: str = PROBE
    ridge: Positive = 1e-3
    epochs: Count = 1000
    max_steps: Count | None = None
    batch_size: Count = 512
    learning_rate: Positive = 1e-4
    weight_decay: Weight = 0.0
    temperature: Positive = 1.0
    augment: Annotated[str, one_of(AUGMENTATIONS)] = "dsa"
    student_mode: Annotated[str, one_of(STUDENT_MODES)] = "eval"

    def num_steps(self, size: int) -> int:
        """Returns the steps on a set of `size` images."""
        steps = self.epochs * size // min(self.batch_size, size)
        return steps if self.max_steps is None else min(steps, self.max_steps)


class Classifier(NamedTuple):
    """A frozen network that tells the classes of a target.

    It maps pixels `(n, C, H, W)` to outputs `(n, classes)`, -inf for a class it never saw. Pixels outside [0, 1] are
    not clipped, so that it sees what the student sees; only resizing to another size clips, as in `Teacher`.
    """

    outputs: Callable[[Tensor], Tensor]
    num_classes: int


class KnowledgeDistillation(LabelledProtocol[KdSettings]):
    """Accuracy on held-out images of a student that a classifier of the target taught on the set's images alone.

    The student keeps its body and gets a new head. It learns by the cross-entropy to the classifier's soft labels of
    the same augmented image, which it sees in the set's own pixel space and the classifier in its own. Every set goes
    through the same recipe, also one of noise.

    The paper's released code differs in three things. Its classifier normalises by the statistics of each batch, ours
    is in eval mode. Its Gaussian baseline is not a set: it draws fresh noise in each step, for a student without
    pre-training, at a learning rate of 1e-3. Its learning rate falls from epoch to epoch, ours from step to step.

    `classifier="probe"` reads the features of a teacher, which is on the device of the data.
    """

    name = "kd"

    def __init__(self, settings: KdSettings, teacher: Teacher | None) -> None:
        super().__init__(settings)
        self.network = _choose_network(settings.classifier, teacher)
        self._identity = self.network.identity()
        # Keyed by the images, which a dataset with other held-out targets shares.
        self._classifiers: WeakKeyDictionary[ImageBank, Classifier] = WeakKeyDictionary()
        self._building = threading.Lock()

    def key(self, data: RealData) -> dict[str, Any]:
        """Returns the settings, and the identity of the classifier's network."""
        return {**super().key(data), "network": self._identity}

    def batches(self, size: int) -> dict[str, int]:
        """See `LabelledProtocol.batches`."""
        return {f"--kd.batch-size {self.settings.batch_size} on a set of {size}": min(self.settings.batch_size, size)}

    def applies(self, pretrained: Pretrained, data: RealData) -> bool:
        """Whether there are a set to learn on, and labels of the target."""
        return pretrained.pairs is not None and data.labelled

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Teaches the student and measures its accuracy."""
        pairs, seed = pretrained.pairs, pretrained.seed
        if pairs is None:
            raise ValueError("a student is taught on a set, and this one has none: check applies first")
        classifier, space = self.classifier(data), space_of(pairs)
        student = with_new_head(pretrained.student, classifier.num_classes, seed)
        teach(student, pairs, lambda images: classifier.outputs(space.denormalise(images)), self.settings, seed)
        with batch_statistics(student) if self.settings.student_mode == "batch-statistics" else nullcontext():
            return [score(student, data, self.name)]

    def classifier(self, data: RealData) -> Classifier:
        """Returns the classifier of a target, built once for all threads."""
        with self._building:
            if data.train not in self._classifiers:
                self._classifiers[data.train] = self._build(data)
            return self._classifiers[data.train]

    def _build(self, data: RealData) -> Classifier:
        network, named = self.network, self.settings.classifier
        if named != PROBE:
            classes = max(data.num_classes, len(data.train.label_names or ()))
            if network.feature_dim != classes:
                raise InputError(
                    f"kd.classifier must tell the {classes} classes of {data.name}, {named} tells "
                    f"{network.feature_dim}: choose a network trained on it, or probe"
                )
            return Classifier(network.to(data.device), classes)
        known = data.known(data.train)
        space, side = data.pixel_space, network.input_size
        features = data.apply(lambda images: network(space.denormalise(images)), data.train, known, side)
        labels = data.labels(data.train)[known].to(data.device)
        head = fit_logistic(features.to(data.device), labels, self.settings.ridge, data.num_classes)
        return Classifier(lambda pixels: functional.linear(network(pixels), *head), data.num_classes)


def teach(
    student: nn.Module, pairs: Pairs, classify: Callable[[Tensor], Tensor], settings: KdSettings, seed: int
) -> nn.Module:
    """Trains a student in place to imitate a classifier on a set's images; returns it in eval mode.

    `classify` maps images `(n, C, H, W)` in the set's pixel space to outputs `(n, classes)`.
    """
    size = len(pairs)

    def _loss(step: int) -> Tensor:
        indices = draw_batch(size, min(settings.batch_size, size), seed, "knowledge distillation", step)
        drawn = generator(seed, "augmentation of knowledge distillation", step)
        images, _ = pairs.batch(indices)
        dsa = settings.augment == "dsa"
        images = augment_dsa(images, drawn) if dsa else augmented(images, settings.augment, drawn)
        with torch.no_grad():
            taught = classify(images)
        return soft_cross_entropy(student(images), taught, settings.temperature)

    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return descend(student, optimizer, _loss, settings.num_steps(size), "kd", seed)


def soft_cross_entropy(outputs: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Returns the cross-entropy of a student's outputs to a classifier's soft labels, `(n, classes)`, mean over `n`.

    Hinton et al. (2015, arXiv 1503.02531, section 2), without their factor `temperature ** 2`, as in KRR-ST's code.
    Outputs of the classifier may be -inf, for no probability.
    """
    return functional.cross_entropy(outputs / temperature, (taught / temperature).softmax(1))


def space_of(pairs: Pairs) -> PixelSpace:
    """Returns the pixel space of the images that a set gives to students; raises a `ValueError` where it has none."""
    space = pairs.distilled.pixel_space if isinstance(pairs, SetPairs) else getattr(pairs, "pixel_space", None)
    if not isinstance(space, PixelSpace):
        raise ValueError(f"pairs with a pixel_space are required, {type(pairs).__name__} has none")
    return space


def _choose_network(name: str, teacher: Teacher | None) -> Teacher:
    if name == PROBE:
        if teacher is None:
            raise InputError("kd.classifier probe reads a teacher's features, and there is none: name a network")
        return teacher
    try:
        network = create_model(name, pretrained=True, args={})
        config = resolve_model_data_config(network)
        _, height, width = config["input_size"]
        if height != width:
            raise ValueError(f"it takes {height}x{width} pixels, ours are square")
        space = read_pixel_space(name, config, None, None, None)
        return Teacher(WholeNetwork(network), space, width, name, interpolation=config["interpolation"])
    except Exception as error:  # timm, the Hub client and safetensors each raise their own kinds here
        raise InputError(
            f"kd.classifier {name!r} cannot be built: {shorten_error(error)}. Use probe, a timm name with weights, "
            "local-dir:FOLDER with config.json and model.safetensors, or hf-hub:OWNER/NAME"
        ) from error
