"""A run of Boost from tiled crops: its set, by the recipe."""

from pathlib import Path

import torch

from ssdd_hub import DistilledSet
from ssdd_hub.sets.check import check_folder

SMOKE = Path(__file__).parents[2] / "recipes" / "configs" / "smoke.yaml"
BASES = "{bases: 12, target_bases: 6, components: source, factor: 2, lr_bases: 1e-3}"
ARGS = f"{{of: bases, of_args: {BASES}, kind: rotations, first: teacher, shift: fitted, hidden: 4, lr_shift: 1e-2}}"


def test_boost_distils_rotations_with_bases_and_networks(launch, tmp_path):
    output = tmp_path / "boost"
    words = ("--config", SMOKE, "--parameterisation", "views", "--parameterisation.args", ARGS, "--init", "rded")
    words += ("--selection.tile-crops", 2, "--distiller.num-images", 10, "--student-training.augment", "views")
    words += ("--evaluate.seeds", 1, "--storage.targets", "float16", "--storage.pixels", "uint8")
    launch("distill", *words, "--output", output)
    made = DistilledSet.load(output / "distilled")
    width = made.targets.shape[1]
    assert torch.equal(made.views, torch.tensor([[4, 4, 2], [4, 4, 4], [4, 4, 6]]).repeat(10, 1, 1))
    assert made.view_targets.shape == (10, 3, width) and (made.view_targets - made.targets[:, None]).abs().max() > 0.1
    shared = {name: tuple(part.shape) for name, part in made.packed.decoder.shared.items()}
    assert shared == {
        "bases": (13, 1, 8, 8),
        "target_bases": (7, width),
        "shift_hidden": (12, 8),
        "shift_output": (21, 5),
    }
    assert made.packed.tensors["targets"].shape == (10, 7)
    start = made.provenance["start"]
    assert start["init"] == "rded" and torch.tensor(start["indices"]).shape == (10, 4)
    card = (output / "distilled" / "README.md").read_text(encoding="utf-8")
    assert "Distillation started from tiled crops of real images of the source" in card
    assert not [finding for finding in check_folder(output / "distilled") if finding.level == "error"]
    assert {record["set"] for record in made.provenance["scores"]} == {"distilled", "random", "none"}
