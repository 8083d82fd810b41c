"""Linear probes on a frozen backbone that a set alone trains."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from evaluation_cases import CPU, SPACE, bright_bank, bright_data, make_network

from ssdd_hub.data.augment import AUGMENTATIONS
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.evaluation import estimate
from ssdd_hub.evaluation.protocols import backbone_probe
from ssdd_hub.evaluation.protocols.backbone_probe import BackboneProbe, BackboneProbeSettings
from ssdd_hub.evaluation.protocols.base import Pretrained
from ssdd_hub.evaluation.protocols.linear_probe import ProbeSettings, fit_probe
from ssdd_hub.seeds import generator
from ssdd_hub.selection.source import SourcePairs
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.pretrain import SetPairs
from ssdd_hub.teachers import build_teacher

BACKBONE = f"local-dir:{Path(__file__).parents[2] / 'model_cards' / 'cifar100-barlow-twins'}"


def make_set(labels=(0, 1, 2, 2, 1, 0)):
    bank = bright_bank(labels, 3)
    images = SPACE.normalise(bank.pixels / 255)
    return DistilledSet(images, torch.eye(3)[bank.labels] - 1 / 3, SPACE, labels=bank.labels)


def protocol(**settings):
    (made,) = BackboneProbe.of_each(BackboneProbeSettings(**{"backbones": [BACKBONE], "views": 3, **settings}))
    return made


def given(pairs, seed=1):
    return Pretrained(make_network(), make_network, pairs, seed)


def test_the_accuracy_is_that_of_a_regression_on_the_features_of_views():
    distilled, data, network = make_set(), bright_data(noise=90), build_teacher(BACKBONE)
    [measure] = protocol(ridge=0.3)(given(SetPairs(distilled)), data)
    views = []
    for view in range(3):
        drawn = generator(1, "views of a backbone probe", view, 0)
        views.append(SPACE.denormalise(AUGMENTATIONS["flip-resize"](distilled.images, drawn, False)))
    features = network(torch.cat(views))
    (weight, bias), _ = fit_probe(features, distilled.labels.repeat(3), 3, ProbeSettings(ridges=[0.3]))
    tested = network(data.heldout.pixels / 255)
    right = (tested @ weight.T + bias).argmax(1) == data.heldout.labels
    assert (measure.metric, measure.labels) == ("accuracy", None) and len(measure.by_class) == 3
    assert measure.value == pytest.approx(right.double().mean().item()) and 1 / 3 < measure.value <= 1


def test_wrong_labels_teach_wrong_classes_and_seeds_draw_other_views():
    distilled, data, probe = make_set(), bright_data(), protocol()
    turned = replace(distilled, labels=(distilled.labels + 1) % 3)
    right, wrong = (probe(given(SetPairs(each)), data)[0].value for each in (distilled, turned))
    assert right > 0.9 and wrong < 0.1
    one, again, other = (probe._learned(SetPairs(distilled), seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_views_are_fewer_of_large_sets_and_those_without_labels_are_left_out():
    data, probe = bright_data(), protocol(max_views=150, views=4)
    whole = SourcePairs(data.train, torch.zeros(60, 3), SPACE, CPU)
    assert len(probe._learned(whole, 0)[0]) == 120 and len(probe._learned(SetPairs(make_set()), 0)[1]) == 24
    assert probe.applies(given(whole), data) and not probe.applies(given(None), data)
    assert not probe.applies(given(SetPairs(replace(make_set(), labels=None))), data)


def test_a_set_may_have_classes_that_the_data_lack():
    """The class 2 of the set is not among the two of the data; no image can be told to be of it."""
    distilled, data = make_set(), bright_data([0, 1] * 20, [0, 1] * 10)
    [measure] = protocol()(given(SetPairs(distilled)), data)
    assert data.num_classes == 2 and len(measure.by_class) == 2 and measure.value > 0.5


def test_the_key_names_the_network_by_its_weights_and_not_by_its_folder():
    probe = protocol(input_sizes=[32])
    assert probe.name == "backbone_probe cifar100-barlow-twins" and probe.trains_itself
    key = probe.key(bright_data())
    assert key["views"] == 3 and key["backbone"]["weights_sha256"] and str(Path(BACKBONE[10:]).parent) not in str(key)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"backbones": ["local-dir:a/x", "local-dir:b/x"]}, "must differ in their last parts"),
        ({"backbones": ["a", "b"], "input_sizes": [96]}, "must be one above 0 for each of 2 backbones"),
        ({"backbones": ["a"], "input_sizes": [0]}, "must be one above 0 for each of 1 backbones"),
    ],
)
def test_names_and_sizes_are_checked(settings, told):
    with pytest.raises(SettingsError, match=told):
        BackboneProbeSettings(**settings)
    with pytest.raises(InputError):
        BackboneProbe(BackboneProbeSettings(backbones=["no_such_network"]))


def test_an_estimate_counts_held_out_images_once_and_views_of_set_and_random_images_by_seed(monkeypatch):
    """By a clock that ticks once for each image that the network reads."""
    read = 0

    def built(*args, **kwargs):
        def tick(module, given):
            nonlocal read
            read += len(given[0])

        network = build_teacher(*args, **kwargs)
        network.register_forward_pre_hook(tick)
        return network

    monkeypatch.setattr(backbone_probe, "build_teacher", built)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: read)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    settings = BackboneProbeSettings(backbones=[BACKBONE], views=4)
    stage = estimate.time_backbone_probes(settings, 6, bright_data(), 3, Accelerator(cpu=True))
    assert (stage.steps, stage.seconds) == (6, 30 + 3 * 2 * 24)
    unlabelled = bright_data([0] * 60)
    assert estimate.time_backbone_probes(settings, 6, unlabelled, 3, Accelerator(cpu=True)).seconds == 0
