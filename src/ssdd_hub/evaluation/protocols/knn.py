"""Nearest neighbours among the features of a pre-trained student."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssdd_hub.bounds import Count, Positive, Settings
from ssdd_hub.evaluation.protocols.base import LabelledProtocol, Measure, Pretrained, measure_accuracy
from ssdd_hub.evaluation.protocols.linear_probe import frozen_features
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.seeds import generator
from ssdd_hub.teachers.monitor import knn_votes


@dataclass(frozen=True)
class KnnSettings(Settings, section="knn"):
    """How nearest neighbours vote; the defaults are those of Wu et al. (CVPR 2018, arXiv 1805.01978, section 3.4).

    Attributes:
        neighbours: Neighbours that vote; all where there are fewer.
        temperature: A neighbour of cosine similarity `s` votes with weight `exp(s / temperature)`.
        max_images: At most this many labelled images vote, drawn by seed.
    """

    neighbours: Count = 200
    temperature: Positive = 0.1
    max_images: Count = 50000

    def voters(self, data: RealData, seed: int) -> Tensor:
        """Returns the images of known class that vote, indices of `data.train`, `(n,)`."""
        known = data.known(data.train)
        drawn = torch.randperm(len(known), generator=generator(seed, "voting images"))[: self.max_images]
        return known[drawn.sort().values]

    def measure(self, data: RealData, voters: Tensor, vectors: Tensor, test_vectors: Tensor) -> Measure:
        """Returns the accuracy of the vote on held-out images of known class, by vectors of voters and of these."""
        labels, truth = data.labels(data.train)[voters], data.labels(data.heldout)[data.known(data.heldout)]
        hits = knn_votes(vectors, labels, test_vectors, self.neighbours, self.temperature).cpu() == truth
        return measure_accuracy(hits, truth, data.num_classes)


class NearestNeighbours(LabelledProtocol[KnnSettings]):
    """Held-out accuracy of a vote of nearest neighbours among the pre-logits of labelled images."""

    name = "knn"

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Measures the accuracy."""
        voters = self.settings.voters(data, pretrained.seed)
        features = frozen_features(pretrained.student, data, data.train, voters)
        test = frozen_features(pretrained.student, data, data.heldout, data.known(data.heldout))
        return [self.settings.measure(data, voters, features, test)]
