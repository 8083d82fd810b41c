"""Losses of randomly augmented images whose average over all augmentations is an exact, finite sum."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightly.loss import BarlowTwinsLoss, NTXentLoss, VICRegLoss
from torch import Tensor
from torch.func import vmap
from torch.nn import functional


@dataclass(frozen=True)
class InnerLoss:
    """A loss of the embeddings of randomly augmented images, whose average over all draws is known.

    Attributes:
        compare: Maps `num_views` embeddings `(M, D)` of the images to a scalar.
        num_views: Views of each image that one draw has.
        expect: Maps the embeddings `(V, M, D)` of all views to the mean of `compare` over independent draws for every
            image. None where no such sum is short: then one draw serves all images, and the mean is that over the
            `V ** num_views` draws there are.
        augmented: Whether images are augmented; if not, their only view is as they are.
    """

    compare: Callable[..., Tensor]
    num_views: int = 2
    expect: Callable[[Tensor], Tensor] | None = None
    augmented: bool = True

    def draw(self, shape: tuple[int, ...], num_augmentations: int, num_images: int, source: torch.Generator) -> Tensor:
        """Returns the number of an augmentation for each view of each image, `(*shape, num_views, M)`, int64."""
        independent = num_images if self.expect else 1
        drawn = torch.randint(num_augmentations, (*shape, self.num_views, independent), generator=source)
        return drawn.expand(*shape, self.num_views, num_images)

    def expected(self, embeddings: Tensor) -> Tensor:
        """Maps the embeddings `(V, M, D)` of all views to the mean of the loss over all draws, a scalar."""
        if self.expect:
            return self.expect(embeddings)
        numbers = [torch.arange(len(embeddings))] * self.num_views
        draws = torch.cartesian_prod(*numbers).reshape(-1, self.num_views)
        return vmap(lambda draw: self.compare(*embeddings[draw]))(draws).mean()


def spectral_loss(first: Tensor, second: Tensor) -> Tensor:
    """Returns the spectral contrastive loss of two views `(M, D)` (HaoChen et al., NeurIPS 2021, arXiv 2106.04156).

    Embeddings are scaled to length 1, without which the loss, of the fourth power of the last weights, runs away.
    """
    products = functional.normalize(first, dim=-1) @ functional.normalize(second, dim=-1).T
    return _spectral(products, products.square())


def expected_spectral_loss(embeddings: Tensor) -> Tensor:
    """Returns the mean of `spectral_loss` over independent views, from the embeddings `(V, M, D)` of all of them."""
    embeddings = functional.normalize(embeddings, dim=-1)
    means = embeddings.mean(0)
    moments = torch.einsum("vmd,vme->mde", embeddings, embeddings) / len(embeddings)
    return _spectral(means @ means.T, torch.einsum("mde,nde->mn", moments, moments))


def _spectral(products: Tensor, squares: Tensor) -> Tensor:
    count = len(products)
    return -2 * products.trace() / count + (squares.sum() - squares.trace()) / (count * (count - 1))


def regression(targets: Tensor, augmented: bool) -> InnerLoss:
    """Returns the mean squared error to targets `(M, D)`: KRR-ST's inner loss, or the same on augmented images."""

    def _compare(embeddings: Tensor) -> Tensor:
        return functional.mse_loss(embeddings, targets.expand_as(embeddings))

    # Being additive over images and views, it has the same form for one draw and for all.
    return InnerLoss(_compare, 1, _compare, augmented)


LOSSES = {
    "barlow_twins": InnerLoss(BarlowTwinsLoss()),
    "simclr": InnerLoss(NTXentLoss(temperature=0.5)),
    "vicreg": InnerLoss(VICRegLoss()),
    "spectral": InnerLoss(spectral_loss, expect=expected_spectral_loss),
}
