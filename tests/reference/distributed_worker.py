"""What `test_distributed.py` runs on one process and on two: features, ten outer steps, and an evaluation."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from ssdd_hub.data.bank import ImageBank, fingerprint_pixels
from ssdd_hub.distill.batches import build_batches
from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.evaluation.entries import StudentEntry, entry_of_none, entry_of_set
from ssdd_hub.evaluation.evaluation import Evaluation
from ssdd_hub.evaluation.protocols.linear_probe import LinearProbe, ProbeSettings
from ssdd_hub.evaluation.protocols.teacher_error import TeacherError
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.evaluation.store import ScoreStore
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.models.pretraining import StudentTrainingSettings
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.checkpoints import save_tree
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.targets.cache import FeatureCache
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import Teacher

NUM_IMAGES, STEPS = 5, 10


def make_bank(count, seed):
    source = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=source, dtype=torch.uint8)
    labels = torch.randint(0, 2, (count,), generator=source)
    return ImageBank(pixels, labels, ["a", "b"], {"fingerprint": fingerprint_pixels(pixels)})


def distil(accelerator, folder, augment):
    bank, space = make_bank(33, 0), PixelSpace((0.5,), (0.25,))
    torch.manual_seed(0)
    teacher = Teacher(ConvNet((6, 8), "batch", 1, 8, 0), space, 8, "tiny").double()
    cache = FeatureCache(teacher, accelerator, folder / f"features-{augment}", batch_size=4, shard_size=8)
    features = cache.features(bank)
    targets = Targets(features, TargetTransform.fit("standardise", features), torch.float64)
    # A batch that two processes cannot share evenly.
    sizes = {"batch_size": 7, "seed": 0, "views": 0}
    batches = build_batches(bank, cache, targets, space, augment=augment, **sizes)
    pool = StudentPool(
        lambda: ConvNet((4, 5), "batch", 1, 8, targets.width), PoolSettings(size=2, max_age=6), 0, dtype=torch.float64
    )
    rates = {"lr_images": 1e-2, "lr_targets": 1e-2}
    settings = DistillerSettings(num_images=NUM_IMAGES, steps=STEPS, batch_size=7, precision="float64", **rates)
    first = space.normalise(bank.pixels[:NUM_IMAGES].double() / 255)
    distiller = Distiller(first, targets[:NUM_IMAGES], pool, batches, settings, accelerator)
    for _ in distiller.warm_up():
        pass
    losses = [distiller.step()["loss"] for _ in range(STEPS)]
    return {
        "features": features[:],
        "images": distiller.images.detach(),
        "targets": distiller.targets.detach(),
        "losses": torch.stack(losses),
        "student": pool.students[0].module.state_dict(),
    }


def score(accelerator, folder):
    bank, heldout, space = make_bank(33, 0), make_bank(12, 1), PixelSpace((0.5,), (0.25,))
    targets, heldout_targets = (part.pixels.flatten(1)[:, :3].float() / 255 for part in (bank, heldout))
    data = RealData("random", bank, heldout, space, accelerator.device, heldout_targets)
    chosen = torch.arange(NUM_IMAGES)
    made = DistilledSet(data.images(bank, chosen), targets[chosen], space)
    protocols = [TeacherError(), LinearProbe(ProbeSettings(labels=[10], draws=1))]
    evaluation = Evaluation(
        [entry_of_set("random", made, accelerator.device), entry_of_none()],
        [StudentEntry("tiny", lambda: ConvNet((4,), "batch", 1, 8, 3), "tiny", protocols)],
        [data],
        StudentTrainingSettings(epochs=3, batch_size=4),
        seeds=3,
        seed=0,
        store=ScoreStore(folder / f"cells-{accelerator.num_processes}"),
        facts={},
    )
    return [record for record in evaluation.run(accelerator) if record["metric"] != "seconds"]


def main(folder):
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    results = {str(augment): distil(accelerator, folder, augment) for augment in (False, True)}
    records = score(accelerator, folder)
    if accelerator.is_main_process:
        save_tree(folder / "results.safetensors", results)
    path = folder / f"process-{accelerator.process_index}.json"
    path.write_text(json.dumps({"processes": accelerator.num_processes, "records": records}))
    save_tree(folder / f"images-{accelerator.process_index}.safetensors", results["False"]["images"])
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
