"""MTT, TESLA and DATM: trajectory matching on class labels; MKDT with another task and other settings.

Targets are those of class labels: of each row, the largest is that of the class. None of these whitens images (ZCA) or
averages the set over steps, as some of the released code does.
"""

from dataclasses import dataclass
from typing import Annotated

from ssdd_hub.bounds import Count, Fraction, Natural, Positive, Weight, one_of
from ssdd_hub.distill.methods.mkdt import TASKS, Mkdt, MkdtSettings


@dataclass(frozen=True)
class MttSettings(MkdtSettings, section="method.args"):
    """Settings of `MkdtSettings`, for 10 images a class of CIFAR-100.

    Starts and `unroll` are those with which the released code of FreD runs MTT; learning rates are MTT's defaults.
    """

    expert_epochs: Count = 41
    expert_learning_rate: Positive = 0.01
    expert_momentum: Fraction = 0.0
    expert_weight_decay: Weight = 0.0
    max_start: Count = 40
    unroll: Count = 20
    unroll_batch: Count = 1000
    step_size: Positive = 0.01
    lr_step_size: Weight = 1e-5
    task: Annotated[str, one_of(TASKS)] = "hard-labels"
    dsa: bool = True


@dataclass(frozen=True)
class TeslaSettings(MttSettings, section="method.args"):
    """Settings of `MttSettings`, with the gradient in constant memory."""

    gradient: Annotated[str, one_of(("exact", "constant-memory"))] = "constant-memory"


@dataclass(frozen=True)
class DatmSettings(MttSettings, section="method.args"):
    """Settings of `MttSettings`; what differs is of DATM's released settings for 10 images a class of CIFAR-100."""

    expert_epochs: Count = 51
    min_start: Natural = 0
    first_max_start: Count | None = 30
    max_start: Count = 50
    growth_steps: Count = 2000
    unroll: Count = 80
    task: Annotated[str, one_of(TASKS)] = "soft-labels"
    learn_targets_below: Positive | None = 1.0


class Mtt(Mkdt):
    """Trajectory matching with class labels: those of the set stay what they are, and a network learns images alone.

    The released code trains experts for 50 epochs; no step reads more than `max_start - 1 + match_epochs`.
    """

    name = "mtt"
    citation = "Cazenavette et al., CVPR 2022, arXiv 2203.11932"
    Settings = MttSettings


class Tesla(Mkdt):
    """Trajectory matching in constant memory: the weights that inner steps start from count as constants.

    The paper calls this gradient exact; it is not that of the whole unroll, which `gradient: exact` gives, and which
    is MTT. The paper also takes soft labels from the weights at the goal; in its released code
    that branch runs for ImageNet alone. Here `task: soft-labels` learns the targets of the set as logits instead, so
    that they are stored.
    """

    name = "tesla"
    citation = "Cui et al., ICML 2023, arXiv 2211.10586"
    Settings = TeslaSettings


class Datm(Mkdt):
    """Trajectory matching whose range of starts grows with the steps, with soft labels that are learned.

    The released code starts soft labels from the outputs of an expert, and the set from images that it classifies
    rightly; here labels start from `label_scale` times the targets, and images from the recipe's `init`. Its experts
    are trained for flat minima, these by plain SGD. It moves labels by SGD at 10 with momentum 0.9; here
    `Distiller` does.
    """

    name = "datm"
    citation = "Guo et al., ICLR 2024, arXiv 2310.05773"
    Settings = DatmSettings
