"""Footers of parquet files, damaged at random, read by the calls that we make: they never end the process.

The reader of pyarrow is C++, and some of its calls end the whole process where a footer is damaged. So each batch of
copies is read in a child process, which a signal, or an end of its time, would betray.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RELEASED = Path(__file__).resolve().parents[2] / "model_cards/cifar100-krrst-100"

# Reads `count` copies of a file and prints how many were refused, and how many gave the tensors that were saved.
READ = """
import random, resource, struct, sys
from pathlib import Path
import pyarrow as pa
if sys.argv[4] == "datasets":
    import datasets  # whose types pyarrow then uses
import torch
from ssdd_hub.errors import InputError
from ssdd_hub.record import read_metadata
from ssdd_hub.sets import parquet
from ssdd_hub.sets.folder import Stated

folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
path, stated = next((folder / "data").iterdir()), Stated.of(read_metadata(folder))
whole = path.read_bytes()
(length,) = struct.unpack("<I", whole[-8:-4])
start = len(whole) - 8 - length
saved, draws, counts = parquet.read_tensors(folder, stated), random.Random(seed), {"same": 0, "refused": 0}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for copy in range(count):
    tail = bytearray(whole[start:])
    for _ in range(draws.randint(1, 4)):
        tail[draws.randrange(len(tail))] = draws.randrange(256)
    if copy % 10 == 9:  # cut within the footer, or anywhere, with the length made to fit or not
        cut = bytes(tail[: draws.randrange(length)])
        tail = cut + (struct.pack("<I", len(cut)) + b"PAR1" if draws.random() < 0.7 else b"")
    with path.open("r+b") as file:
        file.seek(start)
        file.write(tail)
        file.truncate()
    try:
        read = parquet.read_tensors(folder, stated)
    except InputError:
        counts["refused"] += 1
    else:
        assert all(torch.equal(read[name], saved[name]) for name in saved), (seed, copy)
        counts["same"] += 1
print(counts["same"], counts["refused"])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


SLOW = [pytest.param(seed, 2000, marks=pytest.mark.slow) for seed in range(1, 6)]


@pytest.mark.parametrize("beside", [pytest.param("alone", marks=pytest.mark.slow), "datasets"])
@pytest.mark.parametrize(("seed", "count"), [(0, 300), *SLOW])
def test_a_damaged_footer_is_an_error_or_does_not_matter(tmp_path, seed, count, beside):
    folder = shutil.copytree(RELEASED, tmp_path / "set")
    command = [sys.executable, "-c", READ, folder, str(seed), str(count), beside]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + count)
    assert done.returncode == 0, f"seed {seed} ended with {done.returncode}: {done.stderr[-2000:]}"
    same, refused, grown = map(int, done.stdout.split())
    assert same + refused == count and same > count // 20 and refused > count // 20
    # The set takes 1.3 MB, its file 1.5 MB, and what is read is let go of in pieces.
    assert grown < 100e6
