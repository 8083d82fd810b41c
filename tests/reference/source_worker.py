"""What `test_sources.py` runs: targets, a start and outer steps from images on the disk, measured.

The memory is that which the process has alone, RssAnon and RssShmem of Linux: pages of mapped files are the system's,
which drops them when it needs the room, and are told apart.
"""

import json
import sys
import threading
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from ssdd_hub.data.bank import DataSettings, load_images
from ssdd_hub.distill.batches import build_batches
from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.heldout import HeldoutError
from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import seeded
from ssdd_hub.selection.methods import SelectionSettings
from ssdd_hub.selection.source import Source
from ssdd_hub.selection.start import start_from
from ssdd_hub.targets.cache import FeatureCache
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import Teacher

M, B = 10, 256


def held(*kinds):
    """MiB of memory of some kinds."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[kind].split()[0]) for kind in kinds) / 1024


class Peak(threading.Thread):
    """The most memory of its own, and mapped from files, that the process has held."""

    def __init__(self):
        super().__init__(daemon=True)
        self.own = self.mapped = 0.0
        self.start()

    def run(self):
        while True:
            self.own = max(self.own, held("RssAnon", "RssShmem"))
            self.mapped = max(self.mapped, held("RssFile"))
            time.sleep(0.02)


def main(result, settings, folder, steps, widths, init):
    torch.set_num_threads(2)
    accelerator, peak, times, began = Accelerator(cpu=True), Peak(), {}, time.perf_counter()

    def timed(name):
        nonlocal began
        times[name], began = round(time.perf_counter() - began, 1), time.perf_counter()

    start = held("RssAnon", "RssShmem")
    images, heldout = load_images(DataSettings(**json.loads(settings)), progress=False)
    timed("images")
    space, side = PixelSpace.of(images.pixels), images.image_size
    timed("mean and std")
    with seeded(0, "teacher"):
        teacher = Teacher(ConvNet((8, 16, 32), "batch", 3, 32, 0), space, 32, "small")
    cache = FeatureCache(teacher, accelerator, Path(folder))
    features, of_heldout = cache.features(images), cache.features(heldout)
    transform = TargetTransform.fit("standardise", features)
    targets = Targets(features, transform)
    timed("targets")
    source = Source(images, targets, teacher, transform, space)
    pixels, first, rows = start_from(init, source, M, 0, SelectionSettings())
    timed("start")
    drawn = {"batch_size": B, "seed": 0, "augment": False, "views": 0}
    batches = build_batches(images, cache, targets, space, **drawn)
    batches.read_ahead(0)
    widths = tuple(json.loads(widths))
    pool = StudentPool(
        lambda: ConvNet(widths, "batch", 3, side, targets.width), PoolSettings(size=1, warm_up=False), 0
    )
    chosen = DistillerSettings(num_images=M, steps=int(steps), batch_size=B, augment=False)
    distiller = Distiller(space.normalise(pixels), first, pool, batches, chosen, accelerator)
    plan = HeldoutError.plan(distiller, heldout, Targets(of_heldout, transform), space)
    losses = [float(distiller.step()["loss"]) for _ in range(int(steps))]
    timed("steps")
    plan.measure(distiller)
    facts = {"images": len(images), "start": start, "peak": peak.own, "mapped": peak.mapped, "seconds": times}
    facts |= {
        "on_disk": images.on_disk,
        "data": distiller.watch.share("data"),
        "losses": losses,
        "rows": rows.tolist(),
    }
    facts["first"] = distiller.images.double().sum().item()
    Path(result).write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
