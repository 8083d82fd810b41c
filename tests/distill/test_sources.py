"""Distillation from images on the disk: the bytes of one from memory, and memory that does not grow with them."""

import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference.warm import Running

WORKER = Path(__file__).parents[1] / "reference" / "source_worker.py"
REAL = Path(__file__).parents[3] / "shared" / "data" / "cifar100" / "cifar100"
BYTES = 224 * 224 * 3
SPARE = 15e9  # bytes of the disk that are left to others

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memory of its own is read from Linux's /proc"),
    pytest.mark.skipif(not REAL.exists(), reason="the images of cifar100 are not beside this clone"),
]


def save_real(folder, count):
    """A folder of real images, each as often as is needed for so many."""
    table = pq.read_table(REAL / "train-00000-of-00001.parquet", columns=["img"])
    files = table["img"].combine_chunks().field("bytes")
    structure = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    card = "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n---\n"
    folder.mkdir()
    (folder / "README.md").write_text(card)
    for split, most in {"train": count, "test": 300}.items():
        for part, first in enumerate(range(0, most, len(files))):
            some = files[: min(len(files), most - first)]
            images = pa.StructArray.from_arrays([some, pa.nulls(len(some), pa.string())], fields=list(structure))
            pq.write_table(pa.table({"image": images}), folder / f"{split}-{part}.parquet", row_group_size=1000)
    return folder


def run(tmp_path, name, folder, steps, widths, init="random", timeout=240, **settings):
    given = json.dumps({"name": str(folder), **settings})
    environment = {"HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    process = Running(
        WORKER, tmp_path / name, given, tmp_path / f"features-{name}", steps, json.dumps(widths), init, **environment
    )
    process.finish(timeout)
    return json.loads((tmp_path / name).read_text())


def test_a_distillation_from_the_disk_is_that_from_memory(tmp_path):
    folder, found = save_real(tmp_path / "set", 600), {}
    for name, settings in {"memory": {}, "disk": {"cache": str(tmp_path / "kept")}}.items():
        found[name] = run(tmp_path, name, folder, 2, [4, 4], "kcenter", image_size=32, **settings)
    same = ("images", "losses", "rows", "first")
    assert [found["disk"][each] for each in same] == [found["memory"][each] for each in same]
    assert found["disk"]["on_disk"] and not found["memory"]["on_disk"]


@pytest.mark.slow
def test_memory_does_not_grow_with_images_of_224_pixels_and_no_step_waits_for_them(tmp_path, capsys):
    """As many of 200,000 images as the disk has room for."""
    count = int(min(200_000, (shutil.disk_usage(tmp_path).free - SPARE) / (BYTES + 10_000)))
    if count < 20_000:
        pytest.skip(f"the disk has room for {count} images")
    try:
        found = []
        for size in (1000, count):
            folder, kept = save_real(tmp_path / f"set-{size}", size), tmp_path / f"kept-{size}"
            settings = {"image_size": 224, "cache": str(kept)}
            found.append(run(tmp_path, f"of-{size}", folder, 4, [32, 64, 128], timeout=20_000, **settings))
        few, many = found
        with capsys.disabled():
            for each in found:
                print(
                    f"\n  {each['images']} images: {each['peak'] - each['start']:.0f} MiB of its own above the start, "
                    f"{each['mapped']:.0f} MiB mapped at most, {each['data']:.2%} of the steps for data, seconds "
                    f"{each['seconds']}"
                )
        assert many["peak"] - few["peak"] <= 1024
        assert many["data"] <= 0.05
    finally:
        for place in tmp_path.glob("kept-*"):
            shutil.rmtree(place)
