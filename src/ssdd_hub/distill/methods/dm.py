"""DM: distribution matching, the distance of mean features of set and real images, in untrained networks.

Source: Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, arXiv 2110.04181, and the code
that they released, which does what the paper says.

Two things are ours. The targets: those of the paper are class labels, which stay; a teacher's are learned too, since
their means are matched beside those of the features (`target_weight: 0` leaves them where they start). The optimiser:
that of the distiller, where the paper has SGD with learning rate 1 and momentum 0.5.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssdd_hub.bounds import Weight
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.methods.matching import Matching, MatchingSettings
from ssdd_hub.distill.pairs import Pairs


@dataclass(frozen=True)
class DmSettings(MatchingSettings):
    """Settings of DM; the defaults are the paper's on CIFAR-10.

    Attributes:
        target_weight: Of the distance of the targets' means, beside that of the features'; class labels have none.
    """

    target_weight: Weight = 1.0


class Dm(Matching):
    """The squared distance of the means of features, of each group."""

    name = "dm"
    citation = "Zhao and Bilen, WACV 2023, arXiv 2110.04181"
    Settings = DmSettings
    settings: DmSettings

    def __init__(self, settings: DmSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        self.moves_targets = self.moves_targets and settings.target_weight > 0

    def match(self, network: int, group: int, own: Pairs, real: Pairs) -> Tensor:
        """Returns the squared distances of the mean features and, weighted, of the mean targets."""
        distance, _ = self.match_means(network, own, real)
        return distance

    def match_means(self, network: int, own: Pairs, real: Pairs) -> tuple[Tensor, Tensor]:
        """Returns the distance, and the features `(m, F)` of the images of the set."""
        engine, module = self.problem.engine, self.networks.get(network)
        with torch.no_grad():
            wanted = engine.features(module, real.images).to(engine.dtype).mean(0)
        features = engine.features(module, own.images).to(engine.dtype)
        distance = (features.mean(0) - wanted).square().sum()
        # Class labels would only differ by rounding, of which the optimiser would make whole steps.
        if not self.groups.are_classes:
            of_targets = (own.targets.mean(0) - real.targets.mean(0)).square().sum()
            distance = distance + self.settings.target_weight * of_targets
        return distance, features
