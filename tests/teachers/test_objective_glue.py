"""Each objective beside a loop written by hand after lightly's examples and benchmarks, with lightly's own parts."""

import copy
import warnings

import numpy as np
import pytest
import torch
from lightly import loss as losses
from lightly.models import modules, utils
from lightly.models.modules import heads
from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.utils.scheduler import cosine_schedule
from reference.objective_cases import HEAD, NAMES, SETTINGS, build, real_views
from torch.nn import functional

STEPS, STEPS_PER_EPOCH = 4, 2
WIDTHS = (32, HEAD["hidden_dim"], HEAD["output_dim"])


class Loop:
    """A plain loop's networks: the backbone's copy, and lightly's heads with the weights of the objective's."""

    def __init__(self, objective):
        self.objective = objective
        self.backbone = copy.deepcopy(objective.backbone)
        self.parts = [self.backbone]
        self.before_step = lambda number: None
        self.after_backward = lambda number: None

    def take(self, module, source="head"):
        """Gives a module of lightly's the weights of the objective's; both are trained from there."""
        module.load_state_dict(getattr(self.objective, source).state_dict())
        self.parts.append(module.double())
        return module

    def take_slow(self, head, slow_head=None, start=0.99):
        """Copies the backbone and a head, which follow at the start of each step; returns their projections."""
        slow_backbone, slow_head = copy.deepcopy(self.backbone), slow_head or copy.deepcopy(head)
        for network in (slow_backbone, slow_head):
            utils.deactivate_requires_grad(network)

        def move(number):
            momentum = cosine_schedule(number, 10, start, 1)
            utils.update_momentum(self.backbone, slow_backbone, m=momentum)
            utils.update_momentum(head, slow_head, m=momentum)

        self.before_step = move
        return lambda view: slow_head(slow_backbone(view)).detach()


def two_views(head_class, loss_class):
    def make(loop):
        head, criterion = loop.take(head_class(*WIDTHS)), loss_class()
        return lambda views, number: criterion(*(head(loop.backbone(view)) for view in views))

    return make


def siamese(loop):
    criterion, head = losses.NegativeCosineSimilarity(), loop.take(heads.SimSiamProjectionHead(*WIDTHS))
    predictor = loop.take(heads.SimSiamPredictionHead(WIDTHS[2], 16, WIDTHS[2]), "predictor")

    def step(views, number):
        outputs = [head(loop.backbone(view)) for view in views]
        zs = torch.stack([z.detach() for z in outputs])
        ps = torch.stack([predictor(z) for z in outputs])
        others = [zs[torch.arange(len(views)) != i].mean(0) for i in range(len(views))]
        return sum(criterion(p, z) / len(views) for p, z in zip(ps, others, strict=True))

    return step


def lejepa(loop):
    criterion = losses.LeJEPALoss(sigreg_num_vectors=64).double()
    head = loop.take(heads.LeJEPAProjectionHead(*WIDTHS))

    def step(views, number):
        global_views = torch.stack([head(loop.backbone(view)) for view in views[:2]])
        local_views = torch.stack([head(loop.backbone(view)) for view in views[2:]])
        return criterion(local_proj=local_views, global_proj=global_views)

    return step


def nnclr(loop):
    criterion, head = losses.NTXentLoss(), loop.take(heads.NNCLRProjectionHead(*WIDTHS))
    predictor = loop.take(heads.NNCLRPredictionHead(WIDTHS[2], 32, WIDTHS[2]), "predictor")
    bank = modules.NNMemoryBankModule((32, WIDTHS[2])).double()
    bank.bank.copy_(loop.objective.bank.bank)

    def step(views, number):
        z0, z1 = (head(loop.backbone(view)) for view in views)
        p0, p1 = predictor(z0), predictor(z1)
        z0, z1 = bank(z0.detach(), update=False), bank(z1.detach(), update=True)
        return 0.5 * (criterion(z0, p1) + criterion(z1, p0))

    return step


def swav(loop):
    criterion, head = losses.SwaVLoss(), loop.take(heads.SwaVProjectionHead(*WIDTHS))
    prototypes = heads.SwaVPrototypes(WIDTHS[2], 20, n_steps_frozen_prototypes=STEPS_PER_EPOCH)
    prototypes = loop.take(prototypes, "prototypes")
    queues = [MemoryBankModule((32, WIDTHS[2])).double() for _ in range(2)]

    def step(views, number):
        prototypes.normalize()
        features = [functional.normalize(head(loop.backbone(view)), dim=1, p=2) for view in views]
        scores = [prototypes(part, number) for part in features]
        with torch.no_grad():
            kept = [queue(part.detach(), update=True)[1] for queue, part in zip(queues, features, strict=True)]
            queued = [prototypes(part.permute(1, 0), number) for part in kept]
        # Two batches of 16 fill the queues.
        return criterion(scores, [], queued if number >= 2 else None)

    return step


def byol(loop):
    criterion, head = losses.NegativeCosineSimilarity(), loop.take(heads.BYOLProjectionHead(*WIDTHS))
    predictor = loop.take(heads.BYOLPredictionHead(WIDTHS[2], WIDTHS[1], WIDTHS[2]), "predictor")
    slow = loop.take_slow(head)

    def step(views, number):
        p0, p1 = (predictor(head(loop.backbone(view))) for view in views)
        z0, z1 = map(slow, views)
        return 0.5 * (criterion(p0, z1) + criterion(p1, z0))

    return step


def moco(loop):
    size = (SETTINGS["moco"]["bank_size"], WIDTHS[2])
    criterion = losses.NTXentLoss(temperature=0.1, memory_bank_size=size).double()
    criterion.memory_bank.bank.copy_(loop.objective.loss.memory_bank.bank)
    head = loop.take(heads.MoCoProjectionHead(*WIDTHS))
    slow = loop.take_slow(head)

    def one_side(query, key):
        key, shuffle = utils.batch_shuffle(key)
        return criterion(head(loop.backbone(query)), utils.batch_unshuffle(slow(key), shuffle))

    return lambda views, number: 0.5 * (one_side(*views) + one_side(*views[::-1]))


def dino(loop):
    criterion = losses.DINOLoss(output_dim=64).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head, slow_head = (
            heads.DINOProjectionHead(WIDTHS[0], 48, 256, 64, batch_norm=True, freeze_last_layer=1) for _ in range(2)
        )
    slow_head.load_state_dict(loop.objective.head.state_dict())
    slow = loop.take_slow(loop.take(head), slow_head.double())
    loop.after_backward = lambda number: head.cancel_last_layer_gradients(number // STEPS_PER_EPOCH)

    def step(views, number):
        student = [head(loop.backbone(view)) for view in views]
        return criterion([slow(view) for view in views[:2]], student, epoch=number // STEPS_PER_EPOCH)

    return step


def tico(loop):
    criterion, head = losses.TiCoLoss(), loop.take(heads.TiCoProjectionHead(*WIDTHS))
    slow = loop.take_slow(head)
    return lambda views, number: criterion(head(loop.backbone(views[0])), slow(views[1]))


def mmcr(loop):
    criterion, head = losses.MMCRLoss(), loop.take(modules.MMCRProjectionHead(*WIDTHS))
    slow = loop.take_slow(head, start=0.996)

    def step(views, number):
        online = torch.stack([head(loop.backbone(view)) for view in views], dim=1)
        return criterion(online, torch.stack([slow(view) for view in views], dim=1))

    return step


def mae(loop):
    encoder = MaskedVisionTransformerTIMM(
        loop.backbone, weight_initialization="skip", pos_embed_initialization="skip"
    ).double()
    embed = loop.take(torch.nn.Linear(64, 32), "embed")
    decoder = loop.take(MaskedVisionTransformerDecoderTIMM(16, 32, 1, 4), "decoder")
    predict = loop.take(torch.nn.Linear(32, 3 * 8 * 8), "predict")

    def step(views, number):
        (images,) = views
        # Drawn over the 16 patches; the class token, at 0, is always kept.
        keep, mask = utils.random_token_mask((len(images), 16), 0.75, mask_class_token=True)
        keep = torch.cat([torch.zeros(len(images), 1, dtype=torch.long), keep + 1], 1)
        mask = mask + 1
        encoded = embed(encoder.encode(images, idx_keep=keep))
        tokens = utils.repeat_token(decoder.mask_token, (len(images), 17))
        decoded = decoder(utils.set_at_index(tokens, keep, encoded))
        predictions = predict(utils.get_at_index(decoded, mask))
        target = utils.get_at_index(utils.patchify(images, 8), mask - 1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return torch.nn.MSELoss()(predictions, target)

    return step


LOOPS = {loop.__name__: loop for loop in (lejepa, nnclr, swav, byol, moco, dino, tico, mmcr, mae)}
LOOPS |= {
    "barlow_twins": two_views(heads.BarlowTwinsProjectionHead, losses.BarlowTwinsLoss),
    "vicreg": two_views(heads.VICRegProjectionHead, losses.VICRegLoss),
    "simclr": two_views(heads.SimCLRProjectionHead, losses.NTXentLoss),
    "dcl": two_views(heads.SimCLRProjectionHead, losses.DCLLoss),
    "simsiam": siamese,
    "fastsiam": siamese,
}


def run(parameters, before_step, step, after_backward, views):
    """Returns the losses of some steps of SGD; each step draws from a generator seeded alike."""
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    values = []
    for number in range(STEPS):
        torch.manual_seed(number)
        before_step(number)
        loss = step(views, number)
        optimizer.zero_grad()
        loss.backward()
        after_backward(number)
        optimizer.step()
        values.append(loss.item())
    return values


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_is_what_a_plain_lightly_loop_computes_and_learns(name):
    # In float64, so that only the mathematics can differ after several steps.
    objective = build(name, "vit" if name == "mae" else "convnext").double().train()
    views = [view.double() for view in real_views(name)]
    loop = Loop(objective)
    step, parameters = LOOPS[name](loop), [parameter for part in loop.parts for parameter in part.parameters()]
    expected = run(parameters, loop.before_step, step, loop.after_backward, views)
    values = run(
        objective.parameters(),
        lambda number: objective.schedule(number, STEPS_PER_EPOCH, 10),
        lambda views, number: objective(views),
        lambda number: objective.after_backward(),
        views,
    )
    assert values == pytest.approx(expected, rel=1e-6, abs=1e-6)
    # Steps that changed nothing would compare nothing.
    assert np.ptp(values) > 1e-3 * abs(values[0])
    for learned, theirs in zip(objective.backbone.parameters(), loop.backbone.parameters(), strict=True):
        torch.testing.assert_close(learned, theirs, rtol=1e-6, atol=1e-8)
