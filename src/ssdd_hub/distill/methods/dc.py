"""DC and DSA: gradient matching between the set and real images, through networks trained on the set.

Sources: Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021, arXiv 2006.05929;
Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021, arXiv 2102.08259;
and the code that they released for both. `augment: dsa` is DSA: both batches are augmented alike, and the network is
trained on augmented images of the set, by `training_augment: dsa`.

As in the released code: only weights with two dimensions or more count, not biases and norms; the distance is 1 less
the cosine, of the weights of each output. The loops of the paper are
`restart`, matches in the life of a network, and `training_steps`, steps of 256 images between two of them: 1 and 1 for
one image a class, 10 and 50 for 10, 50 and 10 passes for 50. The first release trained with momentum 0.5, the last, as
here by default, without. Where targets are a teacher's, gradients are those of the regression.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ssdd_hub.bounds import Count, Natural, one_of
from ssdd_hub.distill.methods.matching import Matching, MatchingSettings
from ssdd_hub.distill.networks import ON_SET, Augmented, Kind
from ssdd_hub.distill.pairs import Pairs

Distance = Annotated[str, one_of(("cosine", "squared"))]
Weights = Annotated[str, one_of(("all", "convolutions"))]
EPSILON = 1e-6
"""What is added to the product of two norms, so that gradients may be zero."""


@dataclass(frozen=True)
class DcSettings(MatchingSettings):
    """Settings of DC; the defaults are the paper's on CIFAR-10 with 10 images a class.

    Attributes:
        distance: Of two gradients: `cosine`, 1 less that of the weights of each output; `squared`, the sum of squares.
        weights: Whose gradients: `all` with two dimensions or more; `convolutions` only.
    """

    augment: Augmented = "none"
    networks: Kind = ON_SET
    restart: Count = 10
    training_steps: Natural = 50
    distance: Distance = "cosine"
    weights: Weights = "all"


class Dc(Matching):
    """The distance of the gradients of the task's loss in the weights, of each group."""

    name = "dc"
    citation = "Zhao et al., ICLR 2021, arXiv 2006.05929; DSA: Zhao and Bilen, ICML 2021, arXiv 2102.08259"
    Settings = DcSettings
    long_steps = True
    settings: DcSettings

    def match(self, network: int, group: int, own: Pairs, real: Pairs) -> Tensor:
        """Returns the sum of the distances over layers."""
        wanted = [part.detach() for part in self._gradients(network, group, real, differentiable=False)]
        found = self._gradients(network, group, own, differentiable=True)
        distance = cosine_distance if self.settings.distance == "cosine" else squared_distance
        return torch.stack([distance(*each) for each in zip(found, wanted, strict=True)]).sum()

    def _gradients(self, network: int, group: int, pairs: Pairs, differentiable: bool) -> tuple[Tensor, ...]:
        module, least = self.networks.get(network), 3 if self.settings.weights == "convolutions" else 2
        matched = [parameter for parameter in module.parameters() if parameter.ndim >= least]
        numbers = torch.full((len(pairs.images),), group, device=pairs.images.device)
        loss = self.networks.task_loss(module(pairs.images), self.networks.for_task(pairs, numbers).targets)
        # Some networks have weights that the loss does not depend on.
        return torch.autograd.grad(
            loss, matched, create_graph=differentiable, allow_unused=True, materialize_grads=True
        )


def cosine_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Returns the sum over outputs of 1 less the cosine of two gradients `(outputs, ...)`."""
    ours, theirs = found.flatten(1), wanted.flatten(1)
    lengths: Tensor = torch.linalg.vector_norm(ours, dim=1) * torch.linalg.vector_norm(theirs, dim=1)
    return (1 - (ours * theirs).sum(1) / (lengths + EPSILON)).sum()


def squared_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Returns the sum of squares of the difference of two gradients."""
    return (found - wanted).square().sum()
