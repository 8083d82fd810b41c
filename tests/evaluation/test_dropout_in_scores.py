"""Students with dropout: every training that a score rests on is a function of its seed."""

import pytest
import torch
from evaluation_cases import MadePairs, bright_data, make_network, make_pairs
from torch import nn

from ssdd_hub.evaluation.protocols.accuracy import AccuracySettings, learn
from ssdd_hub.evaluation.protocols.finetune import FinetuneSettings, fine_tune
from ssdd_hub.evaluation.protocols.kd import KdSettings, teach
from ssdd_hub.models.pretraining import StudentTrainingSettings, fit_student

LABELS = torch.tensor([0, 1, 2] * 4)


class Noisy(nn.Module):
    """A network that drops pixels in train mode."""

    def __init__(self, share):
        super().__init__()
        self.dropout, self.network = nn.Dropout(share), make_network()

    def forward(self, images):
        return self.network(self.dropout(images))


def train(kind, student, seed):
    pairs, data = MadePairs(make_pairs(12).images, torch.eye(3)[LABELS]), bright_data(LABELS, [0])
    if kind == "pre-training":
        return fit_student(student, pairs, StudentTrainingSettings(steps=4, batch_size=4), seed)
    if kind == "labels":
        return learn(student, pairs, LABELS, AccuracySettings(epochs=2, batch_size=4), "none", seed)
    if kind == "fine-tuning":
        return fine_tune(student, data, torch.arange(12), FinetuneSettings(steps=4, batch_size=4), seed)
    return teach(student, pairs, make_network(1), KdSettings(max_steps=4, batch_size=4), seed)


@pytest.mark.parametrize("kind", ["pre-training", "labels", "fine-tuning", "distilled knowledge"])
def test_what_is_learned_depends_on_the_seed_alone(kind):
    found = []
    for disturbance, seed, share in ((0, 3, 0.4), (1, 3, 0.4), (0, 4, 0.4), (0, 3, 0.0)):
        torch.manual_seed(disturbance)
        state = torch.get_rng_state()
        trained = train(kind, Noisy(share), seed)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(torch.cat([each.detach().flatten() for each in trained.parameters()]))
    first, again, *others = found
    assert torch.equal(first, again)
    assert not any(torch.equal(first, other) for other in others)
