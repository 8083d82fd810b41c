"""What `test_compute_targets.py` runs: the recipe, measured, and killed at one of its shards on request."""

import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path

import ssdd_hub.targets.cache
from ssdd_hub.teachers.teacher import Teacher

ROOT = Path(__file__).parents[2]


def peak():
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(facts, dies_at, *arguments):
    forward, write_shard = Teacher.forward, ssdd_hub.targets.cache.write_shard
    marks, shards = [], []

    def measured_forward(teacher, pixels):
        features = forward(teacher, pixels)
        # The first batch of one image is the recipe's check; the start is after the first real one.
        if len(pixels) > 1 and not marks:
            marks.append(peak())
        return features

    def deadly_write(path, *rest):
        if path.name == f"shard-{int(dies_at):05d}.safetensors":
            path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        shards.append(path.name)
        return write_shard(path, *rest)

    Teacher.forward, ssdd_hub.targets.cache.write_shard = measured_forward, deadly_write
    recipe = str(ROOT / "recipes" / "compute_targets.py")
    sys.argv = [recipe, *arguments]
    runpy.run_path(recipe, run_name="__main__")
    name = f"{facts}-{os.environ.get('RANK', '0')}.json"
    start = marks[0] if marks else None
    Path(name).write_text(json.dumps({"start": start, "peak": peak(), "shards": shards}))


if __name__ == "__main__":
    main(*sys.argv[1:])
