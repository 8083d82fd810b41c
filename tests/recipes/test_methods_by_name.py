"""The recipe with a method and a parameterisation that another package offers."""

import json
import shutil
from pathlib import Path

import pytest
from reference.warm import Running
from torch.nn import functional

from ssdd_hub import DistilledSet

ROOT = Path(__file__).parents[2]
RECIPE, SMOKE = ROOT / "recipes" / "distill.py", ROOT / "recipes" / "configs" / "smoke.yaml"
POINTS = """
[ssdd_hub.methods]
mean_match = toy_method:MeanMatch
[ssdd_hub.parameterisations]
tiles = toy_parameterisation:Tiles
"""


@pytest.fixture
def script(tmp_path):
    """The recipe where a package with the toys is installed: all that stands beside the script."""
    info = tmp_path / "toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    for name in ("toy_method.py", "toy_parameterisation.py"):
        shutil.copy(ROOT / "tests" / "distill" / name, tmp_path)
    started = tmp_path / "distill.py"
    started.write_text(f"import runpy\n\nrunpy.run_path({str(RECIPE)!r}, run_name='__main__')\n")
    return started


def test_a_method_and_a_parameterisation_of_another_package_distil(script, tmp_path):
    output = tmp_path / "run"
    given = ["--config", SMOKE, "--output", output, "--method", "mean_match", "--method.args", "{weight: 0.5}"]
    given += ["--parameterisation", "tiles", "--parameterisation.args", "{factor: 2}", "--init", "kmeans"]
    Running(script, *given).finish()
    distilled = DistilledSet.load(output / "distilled")
    assert distilled.images.shape == (20, 1, 16, 16)
    tiles = functional.avg_pool2d(distilled.images, 2)
    assert functional.interpolate(tiles, scale_factor=2.0).allclose(distilled.images, atol=1e-6)
    provenance = distilled.provenance
    assert provenance["method"] == "mean-match"
    assert provenance["settings"]["method"] == {"name": "mean_match", "args": {"weight": 0.5}}
    assert provenance["settings"]["parameterisation"] == {"name": "tiles", "args": {"factor": 2}}
    assert provenance["settings"]["init"] == "kmeans"
    losses = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in losses if record["stage"] == "distill"]
    assert len(losses) == 12


def test_an_unknown_method_is_refused_before_any_work(script, tmp_path):
    status, _, errors = Running(script, "--config", SMOKE, "--output", tmp_path / "run", "--method", "mean").wait()
    assert status != 0 and not (tmp_path / "run").exists()
    assert "method 'mean' is unknown: use one of krr_st, mean_match; the nearest is mean_match" in errors
