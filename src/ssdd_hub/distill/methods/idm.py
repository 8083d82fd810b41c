"""IDM: distribution matching through networks that are trained on real images, with a task loss on the set.

Source: Zhao et al., "Improved Distribution Matching for Dataset Condensation", CVPR 2023, arXiv 2307.09742, and the
code that they released. Its third part, more images of half the size, is the parameterisation `factor`.

As in the released code: every 30 steps a network begins, at most 100 go on, two of them take ten steps of training
after each step, and one, drawn at random, is matched; its loss on the set is weighted by its accuracy on real images
in percent, here that of its last ten steps and there since the last evaluation. Unlike it, which moves the images
after each class, all groups make one step.

Where targets are a teacher's, networks regress them, and accuracy is the explained share of their variance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssdd_hub.bounds import Count, Fraction, Natural, Weight
from ssdd_hub.distill.methods.dm import Dm, DmSettings
from ssdd_hub.distill.networks import ON_REAL, Kind
from ssdd_hub.distill.pairs import Pairs


@dataclass(frozen=True)
class IdmSettings(DmSettings):
    """Settings of IDM; the defaults are those of its code on CIFAR-10 with 10 images a class.

    Attributes:
        task_weight: Of the loss of the networks on the set, for each percent of their accuracy: 0.5 with at most 10
            images a class, otherwise 0.1, and on CIFAR-100 with 10 images.
    """

    task_weight: Weight = 0.5
    networks: Kind = ON_REAL
    restart: Count = 30
    kept: Count = 100
    first: Count = 4
    visits: Count = 2
    training_steps: Natural = 10
    momentum: Fraction = 0.9
    weight_decay: Weight = 5e-4


class Idm(Dm):
    """The distance of DM, and the loss of the network on the set, weighted by what it has learned."""

    name = "idm"
    citation = "Zhao et al., CVPR 2023, arXiv 2307.09742"
    Settings = IdmSettings
    long_steps = True
    settings: IdmSettings

    def match(self, network: int, group: int, own: Pairs, real: Pairs) -> Tensor:
        """Returns the distance of the means plus the weighted loss of the network's head."""
        distance, features = self.match_means(network, own, real)
        weight = self.settings.task_weight * self.networks.skill.get(network, 0.0)
        if not weight:
            return distance
        wanted = self.networks.for_task(own, torch.full((len(features),), group, device=features.device))
        head = self.networks.get(network).get_classifier()  # type: ignore[operator]
        return distance + weight * self.networks.task_loss(head(features), wanted.targets)
