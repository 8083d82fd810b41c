"""A method as another package may write it: the mean features of real images, seen by random networks."""

from dataclasses import dataclass

from ssdd_hub.distill.method import Method
from ssdd_hub.seeds import seeded


@dataclass(frozen=True)
class MeanMatchSettings:
    """Settings of the toy: the weight of the targets."""

    weight: float = 1.0


class MeanMatch(Method):
    """Brings the means of features and of targets to those of real images."""

    name = "mean_match"
    citation = "none"
    Settings = MeanMatchSettings

    def loss(self, pairs, step):
        """Returns the squared distance of the means, in the features of a network drawn anew for every step."""
        problem, engine = self.problem, self.problem.engine
        with seeded(problem.seed, "mean match", step):
            network = problem.build_student().to(engine.device, engine.dtype)
        # No mean of losses of real images: so every process needs the whole batch.
        real = problem.whole_batch(step)
        features, wanted = (engine.features(network, images).mean(0) for images in (pairs.images, real.images))
        of_targets = (pairs.targets.mean(0) - real.targets.mean(0)).square().mean()
        return (features - wanted).square().mean() + self.settings.weight * of_targets
