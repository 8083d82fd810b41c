"""Imports go one way: a package imports only from itself and from those that stand before it in `ORDER`."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "ssdd_hub"
ORDER = """
    lazy timm_registration errors text bounds arguments plain_files plain_yaml seeds setting_values setting_files
    settings pixel_space precision record_schema record files statements
    data models hub runs teachers results targets selection distill sets evaluation
    estimates procedures calls method_list cli
""".split()
# Names that code outside this package uses; nothing inside does.
KEPT = {"krr", "students", "objective"}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
)
FACES = sorted(name for name in MODULES if (PACKAGE / name.replace(".", "/")).is_dir())


def read(module):
    place = PACKAGE.joinpath(*module.split("."))
    return (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text(encoding="utf-8")


def imports(source):
    """Returns the dotted names that this source imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole place"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(source):
    """Returns the modules of the package among them; names taken from the package itself count as `__init__`."""
    found = set()
    for name in imports(source):
        if name.split(".")[0] == "ssdd_hub":
            parts = name.split(".")[1:]
            places = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
            found.add(next((place for place in places if place in MODULES), "__init__"))
    return found


def package_of(module):
    return module.split(".")[0]


def test_imports_are_found_in_every_form():
    source = """
import ssdd_hub.distill.krr, numpy
from ssdd_hub.distill.pool import StudentPool
from ssdd_hub.sets import parquet, DistilledSet
from ssdd_hub import errors, DistilledSet
def later():
    import ssdd_hub
    from ssdd_hub.evaluation.store import ScoreStore
"""
    expected = {"distill.krr", "distill.pool", "sets.parquet", "sets", "errors", "evaluation.store", "__init__"}
    assert own_imports(source) == expected
    assert "numpy" in imports(source)


def test_every_package_has_a_place():
    assert {package_of(module) for module in MODULES} == {*ORDER, *KEPT}, (
        "put a new package into ORDER in tests/test_import_order.py, after all that it imports and before all that "
        "imports it; a new module belongs into one of the packages"
    )


@pytest.mark.parametrize("module", [name for name in MODULES if name not in KEPT])
def test_a_package_imports_only_from_those_before_it(module):
    allowed = ORDER[: ORDER.index(package_of(module)) + 1]
    wrong = {name for name in own_imports(read(module)) if package_of(name) not in allowed}
    assert not wrong, f"{module} imports {sorted(wrong)}, whose packages do not stand before its own in ORDER"


def test_modules_do_not_import_each_other_in_a_circle():
    needs = {name: own_imports(read(name)) - {name, "__init__"} for name in MODULES}
    # A face imports its modules, which may import from other faces; by itself it is no part of a module.
    needs = {name: {other for other in found if other not in FACES} for name, found in needs.items()}
    while True:
        free = {name for name, found in needs.items() if not found & needs.keys()}
        if not free:
            break
        needs = {name: found for name, found in needs.items() if name not in free}
    assert not needs, f"these import each other in a circle, or import what does: {sorted(needs)}"


@pytest.mark.parametrize("face", FACES)
def test_a_face_offers_what_it_says(face):
    package = importlib.import_module(f"ssdd_hub.{face}")
    source = read(face)
    assert len(source.splitlines()) <= 60
    for name in getattr(package, "__all__", ()):
        assert getattr(package, name) is not None
        assert f" {name}" in source
    if hasattr(package, "__all__"):
        with pytest.raises(AttributeError, match="nothing_of_this_name"):
            package.nothing_of_this_name  # noqa: B018


def test_the_package_needs_no_recipe():
    recipes = {"recipes", "studies", *(path.stem for path in (PACKAGE.parents[1] / "recipes").glob("*.py"))}
    assert not {name for module in MODULES for name in imports(read(module)) if name.split(".")[0] in recipes}


def test_the_kernel_regression_stands_alone_and_the_method_needs_no_accelerate():
    for module in ("distill.krr", "distill.pool", "distill.pairs", "distill.engine.ridge_solve"):
        assert not {name for name in imports(read(module)) if name.split(".")[0] == "accelerate"}, module
    assert own_imports(read("distill.krr")) == set()
    assert not {name for name in own_imports(read("distill.pool")) if name.startswith("distill.engine")}


def run(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_names_that_outside_code_uses_are_kept():
    code = """
import warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    from ssdd_hub.krr import outer_loss
    from ssdd_hub.students import ConvNet, build_student, list_students
    print([each.message for each in told if each.category is DeprecationWarning])
    from ssdd_hub.objective import Count, Objective
print(told[-1].category.__name__)
"""
    assert run(code) == ["[]", "DeprecationWarning"]


def test_a_set_loads_without_what_only_its_making_needs():
    code = """
import sys

class Needless:
    def find_spec(name, path=None, target=None):
        if name in ("timm", "lightly", "accelerate", "sklearn", "matplotlib", "torchvision", "datasets"):
            print("asked for", name)
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Needless)
from ssdd_hub import DistilledSet
print(len(DistilledSet.load(sys.argv[1]).images))
"""
    assert run(code, PACKAGE.parents[1] / "model_cards" / "cifar100-krrst-100") == ["100"]


def test_the_package_itself_imports_next_to_nothing():
    assert {"DistilledSet", "build_student"} <= {*run("import ssdd_hub; print(*dir(ssdd_hub))")}
    heavy = "{'torch', 'timm', 'numpy', 'yaml'} & set(sys.modules)"
    assert run(f"import sys, ssdd_hub, ssdd_hub.runs.lock; print(*{heavy})") == []


@pytest.mark.parametrize(
    "imports",
    [
        "import ssdd_hub, timm",
        pytest.param("import timm, ssdd_hub", marks=pytest.mark.slow),
        pytest.param("import ssdd_hub; from timm.models import create_model; import timm", marks=pytest.mark.slow),
        pytest.param("import ssdd_hub.models.convnet; import timm", marks=pytest.mark.slow),
    ],
)
def test_timm_knows_the_networks(imports):
    assert run(f"{imports}; print(timm.create_model('ssdd_convnet3', num_classes=7).num_classes)") == ["7"]
