"""An exported set, scored by the protocol `probe_mkdt` and by a second implementation of MKDT's own evaluation."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import mkdt_evaluator

from ssdd_hub import DistilledSet, build_student, export_tensors, import_tensors
from ssdd_hub.data import DataSettings, load_images
from ssdd_hub.evaluation import RealData
from ssdd_hub.evaluation.protocols.base import Pretrained
from ssdd_hub.evaluation.protocols.linear_probe import MkdtProbe, ProbeSettings, draw_order, take_labelled
from ssdd_hub.models.pretraining import StudentTrainingSettings, fit_student
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import draw_batch, seeded
from ssdd_hub.sets import SetPairs

ROOT = Path(__file__).parents[2]
MINI = ROOT.parent / "shared" / "data" / "cifar100-mini"
# Of a size whose epochs end with a full batch: where the last one is smaller, theirs takes more steps than ours.
IMAGES, EPOCHS = 512, 20
WIDTHS, SEEDS, SHARE = [32, 64, 128], 3, 0.25  # 2,048 features, as those of the paper's network


@pytest.mark.slow
@pytest.mark.skipif(not MINI.exists(), reason=f"{MINI} is not there")
def test_mkdts_evaluation_of_an_exported_set_gives_what_our_protocol_gives(tmp_path):
    made = DistilledSet.load(ROOT / "model_cards" / "cifar100-krrst-300kb")
    made = replace(made, images=made.images[:IMAGES], targets=made.targets[:IMAGES], packed=None)
    folder = export_tensors(made, tmp_path / "set", layout="mkdt")
    read = import_tensors(folder)
    given = DataSettings(str(MINI), label_column="fine_label", image_size=32, mode="rgb")
    train, heldout = load_images(given, progress=False)
    data = RealData("mini", train, heldout, PixelSpace.of(train.pixels), torch.device("cpu"))
    use = StudentTrainingSettings(epochs=EPOCHS, batch_size=256, learning_rate=0.1, weight_decay=1e-4)
    shape = {"num_targets": read.targets.shape[1], "in_chans": 3, "image_size": 32}
    build = partial(build_student, "ssdd_convnet3", widths=WIDTHS, norm="instance", **shape)
    ours, theirs = [], []
    for seed in range(SEEDS):
        with seeded(seed, "student of the test"):
            student = build()
        first = [each.detach().clone() for each in student.parameters()]
        fit_student(student, SetPairs(read), use, seed)
        protocol = MkdtProbe(ProbeSettings(labels=[SHARE], draws=1))
        ours.append(protocol(Pretrained(student, build, SetPairs(read), seed), data)[0].value)
        chosen = take_labelled(draw_order(train.labels, seed, 0), train.labels, SHARE)
        real = (data.images(train)[chosen], train.labels[chosen], data.images(heldout), heldout.labels)
        orders = [draw_batch(IMAGES, IMAGES, seed, "use of the set", epoch) for epoch in range(EPOCHS)]
        torch.manual_seed(seed)
        theirs.append(mkdt_evaluator.evaluate(folder, first, WIDTHS, *real, data.num_classes, orders))
    print(f"ours {np.round(100 * np.array(ours), 2)}, theirs {np.round(100 * np.array(theirs), 2)}")
    # Both start alike and see the same batches and labelled images; the layer starts elsewhere.
    assert 100 * abs(np.mean(ours) - np.mean(theirs)) < 0.3
    assert np.mean(ours) > 0.05
