"""The way of a set over the Hub, with the real client and the real loader of `datasets`, each process its own."""

import hashlib
import json
import re
import subprocess
import sys
import textwrap

import torch
from hub_server import client_env

from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.sets.distilled import DistilledSet

REPO = "ann/tiny"


def run(code, env):
    """Runs code in a process of its own; returns what it prints."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def made_set(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 16, 16, generator=generator) * 2
    # What a careless route would change.
    images[0, 0, 0, :3] = torch.tensor([-0.0, 1e-45, 1 + 2**-23])
    provenance = {
        "method": "krr-st",
        "student": {"name": "ssdd_convnet3", "model_args": {"widths": [4, 6, 8]}},
        "use": {"optimizer": "sgd", "epochs": 2, "batch_size": 4, "learning_rate": 0.01, "momentum": 0.9},
        "student_pixel_space": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    targets = torch.randn(6, 5, generator=generator)
    return DistilledSet(images, targets, PixelSpace((0.4,) * 3, (0.3,) * 3), provenance=provenance)


LOAD = f"""
    import hashlib, json, torch
    from datasets import load_dataset
    from ssdd_hub import DistilledSet

    REPO = {REPO!r}

    def digest(images, targets):
        assert images.dtype == targets.dtype == torch.float32
        return hashlib.sha256(images.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()

    def columns(dataset):
        rows = dataset.select_columns(["pixels", "target"]).with_format("torch")[:]
        return digest(rows["pixels"], rows["target"])

    def streamed(**how):
        rows = list(load_dataset(REPO, split="train", streaming=True, **how).with_format("torch"))
        assert rows[0]["image"].shape == (3, 16, 16)
        return digest(torch.stack([row["pixels"] for row in rows]), torch.stack([row["target"] for row in rows]))

    def ours(**how):
        loaded = DistilledSet.from_pretrained(REPO, **how)
        return digest(loaded.images, loaded.targets)
"""


def test_a_set_goes_to_the_hub_and_comes_back_by_every_way_bit_for_bit(hub, tmp_path):
    first, second = made_set(0), made_set(1)
    env = client_env(hub, tmp_path / "reader")
    commit = [made.push_to_hub(REPO, token="hf_ann", tag=tag) for made, tag in ((first, "v1"), (second, "v2"))][0]
    online = run(
        f"""{LOAD}
    print(json.dumps([
        columns(load_dataset(REPO, split="train", revision="v1")), streamed(revision="v1"), ours(revision="v1"),
        columns(load_dataset(REPO, split="train", revision={commit!r})), ours(revision={commit!r}),
        columns(load_dataset(REPO, split="train")), streamed(), ours(),
    ]))
    """,
        env,
    )
    digests = (
        hashlib.sha256(each.images.numpy().tobytes() + each.targets.numpy().tobytes()) for each in (first, second)
    )
    pinned, newest = (digest.hexdigest() for digest in digests)
    assert json.loads(online) == [pinned] * 5 + [newest] * 3

    hub.requests.clear()
    # `datasets` takes what it loaded last, whatever the revision.
    offline = run(
        f"""{LOAD}
    print(json.dumps([
        columns(load_dataset(REPO, split="train")), ours(), ours(revision="v1"), ours(revision={commit!r})
    ]))
    """,
        {**env, "HF_HUB_OFFLINE": "1"},
    )
    assert json.loads(offline) == [newest, newest, pinned, pinned]
    assert hub.requests == []


def test_a_card_runs_as_it_stands_and_a_private_set_is_denied_to_others_by_every_way(hub, tmp_path):
    made_set(0).push_to_hub(REPO, token="hf_ann", tag="v1")
    ours, plain, use = re.findall(r"```python\n(.*?)```", hub.files(REPO)["README.md"].decode(), re.DOTALL)
    # What the last lines of the card leave behind is what a reader goes on with.
    shown = "print(tuple(outputs.shape), student.training)"
    same = "import torch\nassert torch.equal(images, kept[0]) and torch.equal(targets, kept[1])"
    made_set(1).push_to_hub("lab/secret", token="hf_ann", private=True)
    told = run(
        "\n".join([ours, "kept = images, targets", use, shown, plain, same])
        + textwrap.dedent(f"""{LOAD.replace(REPO, "lab/secret")}
    for token in ("hf_bob", False, "hf_ann"):
        for way in (
            lambda: columns(load_dataset(REPO, split="train", token=token)),
            lambda: streamed(token=token),
            lambda: ours(token=token),
        ):
            try:
                way()
                print("read")
            except Exception as error:
                print(type(error).__name__)
    """),
        client_env(hub, tmp_path / "reader"),
    )
    outputs, *ends = told.splitlines()
    assert outputs == "(6, 10) False"
    denied = ["DatasetNotFoundError", "DatasetNotFoundError", "InputError"]
    assert ends == [*denied, *denied, *["read"] * 3]
