"""Data flows one way: a module of the package may import only modules that stand before it in `ORDER`."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "ssdd_hub"
ORDER = """
    errors plain_files plain_yaml own_runs command_line streams checkpoint machine allocator residence pixel_space
    decode digits columns literal_folder dataset_card dataset_home local_home row_files
    image_source images inputs run_folder augment
    target_transform markdown scores comparison hub arguments statements licences cards storage preview footers shards
    set_checks
    parcel publish_plan publish fetch check publish_set distilled tensor_pairs interop
    stored_models backbones networks students
    objective views joint_embedding clustering momentum dino masked objectives
    state_dicts teacher_card teacher_folder teacher recorded_teacher device_views view_batches knn optimizers pretrain
    teacher_report train_teacher
    image_stream feature_bank features targets
    krr quick winograd compiled recorded pool batches frozen memory stopwatch outer_gradient distiller
    plain benchmark benchmark_report outer_loop
    inner_losses gradient_bias bias_report
    provenance use publish_model publish_run set_views protocols logistic probe closed_form finetune dsa kd
    coresets selection contenders cells evaluate rank origin
    quality_curve time_to_quality quality_contenders time_to_quality_report
    report panels evaluation_pictures evaluation_report launch check_places cli apart cost_curves cost_curves_report
    publish_config speed_config config
""".split()
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(source: str) -> set[str]:
    """Returns the dotted names that this source of the package imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # The package is flat, so a leading dot can only mean the package itself.
            origin = ".".join(filter(None, ["ssdd_hub" if node.level else "", node.module]))
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def own_imports(source: str) -> set[str]:
    """Returns the modules of the package among them; names taken from the package itself count as `__init__`."""
    parts = [name.split(".") for name in imports(source) if name.split(".")[0] == "ssdd_hub"]
    return {part[1] if len(part) > 1 and part[1] in {*MODULES, *ORDER} else "__init__" for part in parts}


def read(module: str) -> str:
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


def test_imports_are_found_in_every_form():
    source = """
import ssdd_hub.krr, numpy
from ssdd_hub.pool import StudentPool
from ssdd_hub import errors, DistilledSet
from . import teacher
from .streams import generator
def later():
    import ssdd_hub
    from ssdd_hub.config import read
"""
    assert own_imports(source) == {"krr", "pool", "errors", "teacher", "streams", "config", "__init__"}
    assert "numpy" in imports(source)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_before_it(module):
    assert module in ORDER, (
        f"src/ssdd_hub/{module}.py has no place in the flow of data: put '{module}' into ORDER in "
        "tests/test_import_order.py, after all that it imports and before all that imports it"
    )
    wrong = own_imports(read(module)) - set(ORDER[: ORDER.index(module)])
    assert not wrong, f"{module} imports {sorted(wrong)}, which do not stand before it in ORDER"


def test_no_module_imports_config():
    importers = [path.stem for path in PACKAGE.glob("*.py") if "config" in own_imports(path.read_text("utf-8"))]
    assert importers == []


@pytest.mark.parametrize("module", ["krr", "pool"])
def test_the_method_is_testable_without_accelerate(module):
    assert not {name for name in imports(read(module)) if name.split(".")[0] == "accelerate"}


def test_the_kernel_regression_stands_alone():
    assert own_imports(read("krr")) == set()
