"""How long publishing takes, and how much memory a large set needs. Run with `python -m pytest -s -m slow`."""

import json
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from hub_server import client_env

from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.publish import push_set

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the peak memory of a process is read from Linux's /proc"),
]
GIB = 2**30
# `measure` prints the bytes of memory at the peak above the start, and the seconds.
START = """
    import json, sys, time
    from pathlib import Path
    import datasets, torch
    from ssdd_hub.hub.download import pull_set
    from ssdd_hub.pixel_space import PixelSpace
    from ssdd_hub.sets.check import verify_folder
    from ssdd_hub.sets.distilled import DistilledSet
    from ssdd_hub.sets.publish import push_set

    def status(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024

    def measure(call):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, began = status("VmRSS"), time.monotonic()
        call()
        print(json.dumps([status("VmHWM") - before, time.monotonic() - began]))
"""


def test_a_set_of_usual_size_is_published_and_verified_within_ten_seconds(hub, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images, targets = (torch.randn(1000, *shape, generator=generator) for shape in ((3, 32, 32), (512,)))
    made = DistilledSet(images, targets, PixelSpace((0.5,) * 3, (0.2,) * 3))
    began = time.monotonic()
    made.push_to_hub("ann/thousand", token="hf_ann")
    pushed = time.monotonic()
    folder = made.save(tmp_path / "set")
    saved = time.monotonic()
    push_set(folder, "ann/again", token="hf_ann")
    print(f"\n  push_to_hub: {pushed - began:.1f} s    of a folder: {time.monotonic() - saved:.1f} s")
    assert pushed - began < 10 and time.monotonic() - saved < 10


def test_two_gigabytes_are_published_and_pulled_in_one_of_memory(hub, tmp_path):
    env = client_env(hub, tmp_path / "home") | {"HF_TOKEN": "hf_ann", "TMPDIR": str(tmp_path)}
    size = 4 * 42_000 * (3 * 64 * 64 + 512)
    assert size > 2e9
    folder = tmp_path / "set"
    steps = {
        "save": f"""
            torch.manual_seed(0)
            images, targets = torch.empty(42_000, 3, 64, 64), torch.empty(42_000, 512)
            for start in range(0, 42_000, 1000):
                images[start:start + 1000].normal_()
            distilled = DistilledSet(images, targets.normal_(), PixelSpace((0.5,) * 3, (0.2,) * 3))
            measure(lambda: distilled.save({str(folder)!r}))
        """,
        "push": f'measure(lambda: push_set({str(folder)!r}, "ann/large"))',
        "pull": f'measure(lambda: pull_set("ann/large", {str(tmp_path / "pulled")!r}, verify_folder))',
        "load": 'measure(lambda: DistilledSet.from_pretrained("ann/large"))',
    }
    peaks = {}
    print(f"\n  {size / 1e9:.2f} GB of tensors")
    for name, code in steps.items():
        script = textwrap.dedent(START) + textwrap.dedent(code)
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks[name], seconds = json.loads(done.stdout.splitlines()[-1])
        print(f"  {name}: {peaks[name] / GIB:.2f} GiB above the start, {seconds:.0f} s")
    files = hub.repos["dataset", "ann/large"].find("main").files
    assert len([name for name in files if name.endswith(".parquet")]) > 8
    assert all(peaks[name] < GIB for name in ("save", "push", "pull"))
    # The set itself is in memory, and the check of its values beside it.
    assert peaks["load"] < size + GIB
