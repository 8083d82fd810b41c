"""Targets of a whole dataset as a user computes them: streamed, interrupted, and on two processes."""

import hashlib
import io
import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Features, Image as ImageFeature
from PIL import Image
from reference.warm import Running, start_two
from sklearn.datasets import load_digits

from ssdd_hub.data.bank import DataSettings
from ssdd_hub.data.stream import ImageStream
from ssdd_hub.models.features import create_backbone
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import seeded
from ssdd_hub.targets.bank import FeatureBank
from ssdd_hub.teachers.teacher import Teacher, build_teacher

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests" / "reference" / "targets_worker.py"


def variants(count):
    """Yields that many real digits as PNG files: every shift, and the negatives, of scikit-learn's 1,797."""
    pixels = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    for index in range(count):
        shift, image = divmod(index, len(pixels))
        negative, (down, right) = shift // 64, divmod(shift % 64, 8)
        shifted = np.roll(pixels[image], (down, right), (0, 1))
        file = io.BytesIO()
        Image.fromarray(255 - shifted if negative else shifted).save(file, "PNG", compress_level=1)
        yield file.getvalue()


def write_dataset(folder, count, rows_per_file):
    """Writes a folder of parquet files as the Hub has them."""
    schema, files = Features({"image": ImageFeature()}).arrow_schema, variants(count)
    folder.mkdir()
    for number, first in enumerate(range(0, count, rows_per_file)):
        rows = [{"bytes": next(files), "path": None} for _ in range(min(rows_per_file, count - first))]
        table = pa.table({"image": rows}, schema=schema)
        pq.write_table(table, folder / f"train-{number:05d}.parquet", row_group_size=1000)
    return folder


def save_teacher(folder, in_chans, image_size, widths):
    with seeded(0, "teacher"):
        sizes = {"in_chans": in_chans, "img_size": image_size, "widths": widths}
        backbone = create_backbone("ssdd_convnet3", pretrained=False, **sizes)
    space = PixelSpace((0.3,) * in_chans, (0.4,) * in_chans)
    Teacher(backbone, space, image_size, "small", "mit").save(folder)
    return folder


def start(output, data, teacher, *settings, processes=1, dies_at=-1):
    """Starts the recipe inside the worker that measures it, on so many processes, and returns these."""
    given = [f"{output}-facts", dies_at, "--data.name", data, "--data.streaming"]
    given += ["--teacher.backbone", f"local-dir:{teacher}", "--teacher.pretrained", "--output", output, *settings]
    # As many threads on one process as on each of two.
    given += ["--run.threads", "1"]
    return [Running(WORKER, *given)] if processes == 1 else start_two(WORKER, *given)


def finish(processes, timeout=240):
    """Waits for all of them, and returns what the first one printed."""
    return [process.finish(timeout) for process in processes][0]


def read_facts(output, rank=0):
    return json.loads(Path(f"{output}-facts-{rank}.json").read_text())


def features_folder(output):
    (folder,) = output.glob("features-*")
    return folder


def contents(output):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in features_folder(output).iterdir()}


# A few hundred images

SMALL = ("--targets.shard-size", "64", "--targets.batch-size", "24", "--targets.dtype", "float16")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A dataset of 300 images, a teacher, and four passes: whole, killed, killed and resumed, on two processes."""
    folder = tmp_path_factory.mktemp("small")
    data = write_dataset(folder / "data", 300, rows_per_file=120)
    teacher = save_teacher(folder / "teacher", 1, 8, [4, 6])
    given = (data, teacher, *SMALL)
    whole, half = start(folder / "whole", *given), start(folder / "half", *given, dies_at=2)
    printed = finish(whole)
    assert half[0].wait()[0] == -signal.SIGKILL
    at_death = sorted(os.listdir(features_folder(folder / "half")))
    resumed, two = start(folder / "half", *given), start(folder / "two", *given, processes=2)
    finish(resumed), finish(two)
    return folder, printed, at_death


def test_all_features_are_computed_and_the_recipe_says_so(small):
    folder, printed, _ = small
    bank, teacher = FeatureBank(features_folder(folder / "whole")), build_teacher(f"local-dir:{folder / 'teacher'}")
    images = ImageStream(DataSettings(name=str(folder / "data"), streaming=True), progress=False)
    pixels = torch.stack([row() for row in images.rows()])
    expected = teacher(pixels.float() / 255)
    assert len(bank) == 300 and bank.dtype == torch.float16
    torch.testing.assert_close(bank[:].float(), expected, rtol=2e-3, atol=1e-4)
    found = re.search(
        r"300 x (\d+) float16, relative rounding error (\S+), 0 skipped, in .*\nteacher .*teacher, licence mit\n"
        r"\d+ s on 1 process",
        printed,
    )
    assert int(found[1]) == bank.width == expected.shape[1]
    assert float(found[2]) == pytest.approx(bank.index.rounding_error, rel=0.05) and 1e-5 < float(found[2]) < 2**-11


def test_a_pass_killed_half_way_and_resumed_gives_the_bytes_of_an_unbroken_one(small):
    folder, _, at_death = small
    assert [name for name in at_death if name.startswith("shard")] == [
        "shard-00000.safetensors",
        "shard-00001.safetensors",
    ]
    assert [name for name in at_death if name.endswith(".tmp")] and "index.json" not in at_death
    assert contents(folder / "half") == contents(folder / "whole")
    assert read_facts(folder / "half")["shards"] == [f"shard-{number:05d}.safetensors" for number in (2, 3, 4)]


def test_two_processes_give_the_bytes_of_one(small):
    folder, _, _ = small
    assert contents(folder / "two") == contents(folder / "whole")
    shares = [read_facts(folder / "two", rank)["shards"] for rank in (0, 1)]
    assert shares == [[f"shard-{number:05d}.safetensors" for number in numbers] for numbers in ((0, 2, 4), (1, 3))]


# As a user launches it


def test_a_distillation_of_fixed_views_finds_all_features_of_its_source_images(launch, tmp_path, capsys):
    teacher, cache = save_teacher(tmp_path / "teacher", 1, 16, [4, 6]), tmp_path / "cache"
    given = ["--teacher.backbone", f"local-dir:{teacher}", "--teacher.pretrained", "--data.max-images", 50]
    given += ["--seed", 3, "--targets.views", 2, "--targets.dtype", "float16", "--targets.shard-size", 32]
    launch("compute_targets", *given, "--output", cache)
    printed = capsys.readouterr().out
    assert re.findall(r"(images as they are|view \d): 50 x", printed) == ["images as they are", "view 0", "view 1"]
    assert printed.rstrip().splitlines()[-2].endswith("teacher, licence mit")

    def states():
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in cache.rglob("features-*/*")}

    made = states()
    assert len(made) == 3 * 3 and str(tmp_path) not in "".join(path.read_text() for path in cache.rglob("*.json"))
    small = ["--config", ROOT / "recipes" / "configs" / "smoke.yaml", "--teacher.model-args", "{}"]
    small += [
        "--distiller.steps",
        "2",
        "--distiller.augment",
        "true",
        "--evaluate.seeds",
        "1",
        "--student-training.epochs",
        "2",
    ]
    launch("distill", *small, *given, "--output", tmp_path / "run", "--run.cache", cache)
    now = states()
    assert {path: now[path] for path in made} == made
    # Only the held-out images are new.
    assert len({path.parent for path in now.keys() - made.keys()}) == 1


def test_mistakes_end_with_a_message_and_write_nothing(refuse, tmp_path):
    grey, colour = save_teacher(tmp_path / "grey", 1, 8, [4]), tmp_path / "colour"
    colour.mkdir()
    Image.new("RGB", (8, 8), (200, 10, 30)).save(colour / "0.png")
    teacher = ["--teacher.backbone", f"local-dir:{grey}", "--teacher.pretrained"]
    cases = [
        ([], ["ready-made teacher", "--teacher.pretrained", "local-dir:FOLDER"]),
        ([*teacher, "--run.mixed-precision", "bf16"], ["precision of the teacher", "--targets.dtype float16"]),
        ([*teacher, "--targets.dtype", "int8"], ["targets.dtype must be one of teacher, float16, bfloat16"]),
        ([*teacher, "--data.streaming"], ["digits are in memory: leave out --data.streaming"]),
        ([*teacher, "--data.name", colour, "--data.streaming"], ["takes images of 1 channel(s), got 3"]),
    ]
    for arguments, parts in cases:
        refuse(parts, "compute_targets", *arguments, "--output", tmp_path / "features")
        assert not (tmp_path / "features").exists()


# 200,000 images


@pytest.mark.slow
def test_targets_of_200000_streamed_images_need_little_memory_and_survive_a_kill(tmp_path, capsys):
    count, shards = 200_000, 25
    began = time.perf_counter()
    data = write_dataset(tmp_path / "data", count, rows_per_file=20_000)
    # Pixels and features together are more than the bar: 614 and 410 MB.
    teacher = save_teacher(tmp_path / "teacher", 3, 32, [8, 16, 32])
    given = (data, teacher, "--data.image-size", "32", "--data.mode", "rgb")
    report = [f"\n{count} PNG files in {time.perf_counter() - began:.0f} s"]

    def timed(name, status=0, **settings):
        began, processes = time.perf_counter(), start(tmp_path / name, *given, **settings)
        assert [process.wait(3000)[0] for process in processes] == [status] * len(processes)
        report.append(f"{name}: {time.perf_counter() - began:.0f} s")

    timed("whole")
    facts = read_facts(tmp_path / "whole")
    growth = facts["peak"] - facts["start"]
    report.append(f"memory: {facts['start']:.0f} MiB after the first batch, {growth:.0f} MiB more at the peak")
    timed("half", status=-signal.SIGKILL, dies_at=shards // 2)
    timed("half")
    timed("two", processes=2)
    bank = FeatureBank(features_folder(tmp_path / "whole"))
    with capsys.disabled():
        print(*report, bank, sep="\n  ")
    assert (len(bank), bank.width, bank.index.num_shards) == (count, 512, shards)
    assert growth <= 1024
    assert len(read_facts(tmp_path / "half")["shards"]) == shards - shards // 2
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "half") == whole
    assert contents(tmp_path / "two") == whole
