"""The package as it is installed: wheel and sdist hold everything that is read at run time."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = {
    "ssdd_hub/py.typed",
    *(f"ssdd_hub/{path.relative_to(ROOT / 'src/ssdd_hub')}" for path in (ROOT / "src/ssdd_hub").rglob("templates/*")),
    *(f"ssdd_hub/{path.relative_to(ROOT / 'src/ssdd_hub')}" for path in (ROOT / "src/ssdd_hub").rglob("*.py")),
    *(f"ssdd_hub/recipes/configs/{path.name}" for path in (ROOT / "recipes/configs").glob("*.yaml")),
    *(f"ssdd_hub/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.py")),
}


def run(*command, **how):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_recipes_start_as_modules_of_a_package_that_lies_elsewhere(tmp_path):
    package = tmp_path / "site" / "ssdd_hub"
    shutil.copytree(ROOT / "src/ssdd_hub", package)
    shutil.copytree(ROOT / "recipes", package / "recipes")
    names = sorted(path.stem for path in (ROOT / "recipes").glob("[a-z]*.py"))
    code = "import sys; from importlib import import_module\n"
    code += f"for name in {names}: print(import_module(f'ssdd_hub.recipes.{{name}}').__file__)\n"
    code += "print(sys.modules['studies'].__file__)"
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    places = run(sys.executable, "-c", code, cwd=tmp_path, env=environment).split()
    assert len(places) == len(names) + 1 and all(place.startswith(str(package)) for place in places)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds from a clean copy, as old files in build/ would be packed too."""
    place = tmp_path_factory.mktemp("built")
    run("git", "clone", "-q", ROOT, place / "clone")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", place, place / "clone")
    return next(place.glob("*.whl")), place


@pytest.mark.slow
def test_the_wheel_holds_all_that_is_read(built):
    with zipfile.ZipFile(built[0]) as wheel:
        assert set(wheel.namelist()) >= NEEDED


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(built):
    wheel, place = built
    code = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    run(sys.executable, "-c", code, cwd=place / "clone")
    sdist = next((place / "clone" / "dist").glob("*.tar.gz"))
    with tarfile.open(sdist) as file:
        file.extractall(place / "sdist", filter="data")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", place / "again", *(place / "sdist").iterdir())
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(next((place / "again").glob("*.whl"))) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


@pytest.mark.slow
def test_the_installed_wheel_works_outside_of_the_clone(built, tmp_path):
    target = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, built[0])
    environment = {**os.environ, "PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"}
    code = "import ssdd_hub; from importlib.metadata import version; print(ssdd_hub.__file__, version('ssdd-hub'))"
    place, version = run(sys.executable, "-c", code, cwd=tmp_path, env=environment).split()
    assert place.startswith(str(target)) and version
    script = target / "bin" / "ssdd-hub"
    assert "push" in run(sys.executable, script, "--help", cwd=tmp_path, env=environment)
    recipe = [sys.executable, "-m", "ssdd_hub.recipes.distill", "--print-config"]
    assert "distiller:" in run(*recipe, cwd=tmp_path, env=environment)
    for name in ("benchmark", "gradient_bias", "time_to_quality"):
        recipe = [sys.executable, "-m", f"ssdd_hub.recipes.{name}", "--print-config"]
        assert "mixed_precision:" in run(*recipe, cwd=tmp_path, env=environment)
    # The word runs the same file, with its settings for photographs by name.
    assert "num_images: 100" in run(
        sys.executable, script, "distill", "a/b", "--print-config", cwd=tmp_path, env=environment
    )
    code = "from ssdd_hub.procedures import load_recipe; print(load_recipe('distill').__file__)"
    assert run(sys.executable, "-c", code, cwd=tmp_path, env=environment).startswith(str(target))
