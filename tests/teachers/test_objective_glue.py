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

FEATURES, STEPS, STEPS_PER_EPOCH = 32, 4, 2
WIDTHS = (FEATURES, HEAD["hidden_dim"], HEAD["output_dim"])


class Loop:
    """A plain loop's networks: the backbone's copy, and lightly's heads with the weights of the objective's."""

    def __init__(self, objective):
        self.objective = objective
        self.backbone = copy.deepcopy(objective.backbone)
        self.parts = [self.backbone]

    def take(self, module, source):
        """Gives a module of lightly's the weights of the objective's; both are trained from there."""
        module.load_state_dict(source.state_dict())
        self.parts.append(module.double())
        return module

    def slow(self, *networks):
        copies = []
        for network in networks:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                copied = copy.deepcopy(network)
            utils.deactivate_requires_grad(copied)
            copies.append(copied)
        return copies

    def parameters(self):
        return [parameter for part in self.parts for parameter in part.parameters()]


def two_views(objective, head, criterion):
    loop = Loop(objective)
    head = loop.take(head, objective.head)

    def step(views, number):
        return criterion(*(head(loop.backbone(view)) for view in views))

    return loop, step


def barlow_twins(objective):
    return two_views(objective, heads.BarlowTwinsProjectionHead(*WIDTHS), losses.BarlowTwinsLoss())


def vicreg(objective):
    return two_views(objective, heads.VICRegProjectionHead(*WIDTHS), losses.VICRegLoss())


def simclr(objective):
    return two_views(objective, heads.SimCLRProjectionHead(*WIDTHS), losses.NTXentLoss())


def dcl(objective):
    return two_views(objective, heads.SimCLRProjectionHead(*WIDTHS), losses.DCLLoss())


def simsiam(objective):
    loop, criterion = Loop(objective), losses.NegativeCosineSimilarity()
    head = loop.take(heads.SimSiamProjectionHead(*WIDTHS), objective.head)
    predictor = loop.take(heads.SimSiamPredictionHead(WIDTHS[2], 16, WIDTHS[2]), objective.predictor)

    def step(views, number):
        z0, z1 = (head(loop.backbone(view)) for view in views)
        p0, p1 = predictor(z0), predictor(z1)
        return 0.5 * (criterion(p0, z1.detach()) + criterion(p1, z0.detach()))

    return loop, step


def fastsiam(objective):
    loop, criterion = Loop(objective), losses.NegativeCosineSimilarity()
    head = loop.take(heads.SimSiamProjectionHead(*WIDTHS), objective.head)
    predictor = loop.take(heads.SimSiamPredictionHead(WIDTHS[2], 16, WIDTHS[2]), objective.predictor)

    def step(views, number):
        outputs = [head(loop.backbone(view)) for view in views]
        zs = torch.stack([z.detach() for z in outputs])
        ps = torch.stack([predictor(z) for z in outputs])
        loss = 0.0
        for i in range(len(views)):
            mask = torch.arange(len(views)) != i
            loss = loss + criterion(ps[i], zs[mask].mean(0)) / len(views)
        return loss

    return loop, step


def lejepa(objective):
    loop, criterion = Loop(objective), losses.LeJEPALoss(sigreg_num_vectors=64).double()
    head = loop.take(heads.LeJEPAProjectionHead(*WIDTHS), objective.head)

    def step(views, number):
        global_views = torch.stack([head(loop.backbone(view)) for view in views[:2]])
        local_views = torch.stack([head(loop.backbone(view)) for view in views[2:]])
        return criterion(local_proj=local_views, global_proj=global_views)

    return loop, step


def nnclr(objective):
    loop, criterion = Loop(objective), losses.NTXentLoss()
    head = loop.take(heads.NNCLRProjectionHead(*WIDTHS), objective.head)
    predictor = loop.take(heads.NNCLRPredictionHead(WIDTHS[2], 32, WIDTHS[2]), objective.predictor)
    bank = modules.NNMemoryBankModule((32, WIDTHS[2])).double()
    bank.bank.copy_(objective.bank.bank)

    def step(views, number):
        z0, z1 = (head(loop.backbone(view)) for view in views)
        p0, p1 = predictor(z0), predictor(z1)
        z0, z1 = bank(z0.detach(), update=False), bank(z1.detach(), update=True)
        return 0.5 * (criterion(z0, p1) + criterion(z1, p0))

    return loop, step


def swav(objective):
    loop, criterion = Loop(objective), losses.SwaVLoss()
    head = loop.take(heads.SwaVProjectionHead(*WIDTHS), objective.head)
    prototypes = heads.SwaVPrototypes(WIDTHS[2], 20, n_steps_frozen_prototypes=STEPS_PER_EPOCH)
    prototypes = loop.take(prototypes, objective.prototypes)
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

    return loop, step


def momentum_value(number, start=0.99):
    return cosine_schedule(number, 10, start, 1)


def byol(objective):
    loop, criterion = Loop(objective), losses.NegativeCosineSimilarity()
    head = loop.take(heads.BYOLProjectionHead(*WIDTHS), objective.head)
    predictor = loop.take(heads.BYOLPredictionHead(WIDTHS[2], WIDTHS[1], WIDTHS[2]), objective.predictor)
    slow_backbone, slow_head = loop.slow(loop.backbone, head)

    def step(views, number):
        utils.update_momentum(loop.backbone, slow_backbone, m=momentum_value(number))
        utils.update_momentum(head, slow_head, m=momentum_value(number))
        p0, p1 = (predictor(head(loop.backbone(view))) for view in views)
        z0, z1 = (slow_head(slow_backbone(view)).detach() for view in views)
        return 0.5 * (criterion(p0, z1) + criterion(p1, z0))

    return loop, step


def moco(objective):
    loop = Loop(objective)
    size = SETTINGS["moco"]["bank_size"]
    criterion = losses.NTXentLoss(temperature=0.1, memory_bank_size=(size, WIDTHS[2])).double()
    criterion.memory_bank.bank.copy_(objective.loss.memory_bank.bank)
    head = loop.take(heads.MoCoProjectionHead(*WIDTHS), objective.head)
    slow_backbone, slow_head = loop.slow(loop.backbone, head)

    def one_side(query, key):
        key, shuffle = utils.batch_shuffle(key)
        keys = utils.batch_unshuffle(slow_head(slow_backbone(key)).detach(), shuffle)
        return criterion(head(loop.backbone(query)), keys)

    def step(views, number):
        utils.update_momentum(loop.backbone, slow_backbone, m=momentum_value(number))
        utils.update_momentum(head, slow_head, m=momentum_value(number))
        return 0.5 * (one_side(*views) + one_side(*views[::-1]))

    return loop, step


def dino(objective):
    loop, criterion = Loop(objective), losses.DINOLoss(output_dim=64).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head, slow_head = (
            heads.DINOProjectionHead(FEATURES, 48, 256, 64, batch_norm=True, freeze_last_layer=1) for _ in range(2)
        )
    slow_head.load_state_dict(objective.head.state_dict())
    head = loop.take(head, objective.head)
    (slow_backbone,) = loop.slow(loop.backbone)
    utils.deactivate_requires_grad(slow_head.double())

    def step(views, number):
        utils.update_momentum(loop.backbone, slow_backbone, m=momentum_value(number))
        utils.update_momentum(head, slow_head, m=momentum_value(number))
        teacher = [slow_head(slow_backbone(view)) for view in views[:2]]
        student = [head(loop.backbone(view)) for view in views]
        loop.after_backward = lambda: head.cancel_last_layer_gradients(number // STEPS_PER_EPOCH)
        return criterion(teacher, student, epoch=number // STEPS_PER_EPOCH)

    return loop, step


def tico(objective):
    loop, criterion = Loop(objective), losses.TiCoLoss()
    head = loop.take(heads.TiCoProjectionHead(*WIDTHS), objective.head)
    slow_backbone, slow_head = loop.slow(loop.backbone, head)

    def step(views, number):
        utils.update_momentum(loop.backbone, slow_backbone, m=momentum_value(number))
        utils.update_momentum(head, slow_head, m=momentum_value(number))
        return criterion(head(loop.backbone(views[0])), slow_head(slow_backbone(views[1])).detach())

    return loop, step


def mmcr(objective):
    loop, criterion = Loop(objective), losses.MMCRLoss()
    head = loop.take(modules.MMCRProjectionHead(*WIDTHS), objective.head)
    slow_backbone, slow_head = loop.slow(loop.backbone, head)

    def step(views, number):
        utils.update_momentum(loop.backbone, slow_backbone, m=momentum_value(number, 0.996))
        utils.update_momentum(head, slow_head, m=momentum_value(number, 0.996))
        online = torch.stack([head(loop.backbone(view)) for view in views], dim=1)
        slow = torch.stack([slow_head(slow_backbone(view)).detach() for view in views], dim=1)
        return criterion(online, slow)

    return loop, step


def mae(objective):
    loop = Loop(objective)
    encoder = MaskedVisionTransformerTIMM(
        loop.backbone, weight_initialization="skip", pos_embed_initialization="skip"
    ).double()
    embed = loop.take(torch.nn.Linear(64, 32), objective.embed)
    decoder = loop.take(MaskedVisionTransformerDecoderTIMM(16, 32, 1, 4), objective.decoder)
    predict = loop.take(torch.nn.Linear(32, 3 * 8 * 8), objective.predict)

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

    return loop, step


LOOPS = {loop.__name__: loop for loop in (barlow_twins, vicreg, simclr, dcl, simsiam, fastsiam, lejepa, nnclr, swav)}
LOOPS |= {loop.__name__: loop for loop in (byol, moco, dino, tico, mmcr, mae)}


def run(parameters, step, after_backward, views):
    """Returns the losses of some steps of SGD; each step draws from a generator seeded alike."""
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    values = []
    for number in range(STEPS):
        torch.manual_seed(number)
        loss = step(views, number)
        optimizer.zero_grad()
        loss.backward()
        after_backward()
        optimizer.step()
        values.append(loss.item())
    return values


def test_every_objective_has_a_loop():
    assert sorted(LOOPS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_is_what_a_plain_lightly_loop_computes_and_learns(name):
    # In float64, so that only the mathematics can differ after several steps.
    objective = build(name, "vit" if name == "mae" else "convnext").double().train()
    views = [view.double() for view in real_views(name)]
    loop, by_hand = LOOPS[name](objective)
    loop.after_backward = lambda: None

    def ours(views, number):
        objective.schedule(number, STEPS_PER_EPOCH, 10)
        return objective(views)

    expected = run(loop.parameters(), by_hand, lambda: loop.after_backward(), views)
    values = run(objective.parameters(), ours, objective.after_backward, views)
    assert values == pytest.approx(expected, rel=1e-6, abs=1e-6)
    # Steps that changed nothing would compare nothing.
    assert np.ptp(values) > 1e-3 * abs(values[0])
    for learned, theirs in zip(objective.backbone.parameters(), loop.backbone.parameters(), strict=True):
        torch.testing.assert_close(learned, theirs, rtol=1e-6, atol=1e-8)
