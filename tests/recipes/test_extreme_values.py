"""Every setting of every recipe with extreme, wrong and empty values: it starts, or refuses them by a message."""

import random
from importlib import import_module
from pathlib import Path

import pytest

from ssdd_hub.evaluation import Evaluation
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.settings import _kinds
from ssdd_hub.teachers.training import Pretraining

# Libraries also warn of some of these values.
pytestmark = pytest.mark.filterwarnings("ignore")
SMOKE = ["--config", Path(__file__).parents[2] / "recipes" / "configs" / "smoke.yaml"]
SMALL = ["--teacher.backbone", "ssdd_convnet3", "--teacher.model-args", "{widths: [4, 8]}", "--data.max-images", "60"]
SMALL += ["--teacher-training.workers", "0", "--teacher-training.batch-size", "32", "--watch.probe", "4"]
CLASSES = {
    "distill": "DistillConfig",
    "train_teacher": "TrainTeacherConfig",
    "evaluate": "EvaluateConfig",
    "compute_targets": "ComputeTargetsConfig",
    "time_to_quality": "TimeToQualityConfig",
    "benchmark": "BenchmarkConfig",
    "gradient_bias": "GradientBiasConfig",
    "publish": "PublishConfig",
}
HUGE = "9" * 400
NUMBERS = ["-1", "0", "1", "1e308", "1e-320", "nan", "inf", "text", "", HUGE]
TEXTS = ["", "text", "x" * 5000, "a/b", "a b\tc"]
DICTS = ["{a: 1}", "{a: .nan}", f"{{a: {HUGE}}}", "{a: {b: 1}}", "{1: 2}", "text", "[]"]
LISTS = ["[]", "[text]", "[nan]", f"[{HUGE}]", "[-1]", "[0]", "[1e308]", "[[1]]", "[null]", "[{name: 3}]", "text"]
VALUES = {int: [*NUMBERS, "1000000000", "1.5"], float: NUMBERS, bool: ["perhaps", ""], str: TEXTS}
OWN = {
    "teacher_training.view_args": ["{min_scale: 2}", "{hf_prob: 7}", "{gaussian_blur: 2.0}", "{min_scale: text}"],
    "teacher_training.objective_args": ["{output_dim: 1048576, hidden_dim: 1048576}", "{hidden_dim: 0}"],
    "teacher.model_args": ["{widths: 3}", "{widths: []}", "{widths: [1048576, 1048576]}", "{norm: 3}"],
    "student.model_args": ["{widths: 3}", "{widths: []}", "{widths: [1048576, 1048576]}", "{norm: 3}"],
    "method.args": ["{ridge: .nan}", "{pool: {size: 1048576}}", "{pool: 3}"],
    "dataset_args": ["{source: 3}", "{source: {image_size: text}}"],
    "student_args": ["{own: 3}", "{own: {widths: text}}"],
    "foreign": ["{layout: text}", "{mean: text, std: text}"],
}


def values_of(name, kind):
    """Returns the texts that a setting is tried with, by its type."""
    words = str(kind)
    found = next((VALUES[plain] for plain in VALUES if kind in (plain, plain | None)), None)
    return [*(found or (DICTS if words.startswith("dict") else LISTS)), *OWN.get(name, [])]


def settings_of(recipe):
    return _kinds(getattr(import_module(recipe), CLASSES[recipe]))


class StartedError(Exception):
    """The work begins."""


def begin_work(*_, **__):
    raise StartedError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A teacher and a set that was distilled by it."""
    folder = tmp_path_factory.mktemp("made") / "run"
    given = [*SMOKE, "--distiller.steps", "1", "--student-training.epochs", "1", "--teacher-training.max-steps", "1"]
    return folder, [*given, "--output", folder]


@pytest.fixture
def attempt(launch, made, tmp_path, monkeypatch, capsys):
    """Runs a recipe up to its work, with a teacher that counts as trained; returns how it ended and what it said."""
    folder, given = made
    if not folder.exists():
        launch("distill", *given)
    ready = ["--teacher.backbone", f"local-dir:{folder / 'teacher'}", "--teacher.pretrained"]
    ready += ["--teacher.model-args", "{}", "--data.max-images", "60"]
    few = ["--student.model-args", "{widths: [4, 8]}", "--distiller.num-images", "20"]
    base = {"distill": SMOKE, "train_teacher": SMALL, "evaluate": ["--set", folder / "distilled"]}
    base |= {"compute_targets": ready, "time_to_quality": [*ready, "--data.name", "digits", *few], "benchmark": few}
    base |= {"gradient_bias": [], "publish": ["--set", folder / "distilled", "--repo", "me/x", "--dry-run"]}
    begun = []
    start = RunFolder.start

    def started(self, *arguments):
        begun.append(self)
        start(self, *arguments)

    monkeypatch.setattr(RunFolder, "start", started)
    monkeypatch.setattr(Pretraining, "run", lambda *_, **__: None)
    monkeypatch.setattr(Evaluation, "run", begin_work)
    monkeypatch.setattr("distill.distil", begin_work)
    monkeypatch.setattr("time_to_quality.train", begin_work)
    monkeypatch.setattr("benchmark.Benchmark.run", begin_work)
    monkeypatch.setattr("gradient_bias.sample_gradients", begin_work)
    monkeypatch.chdir(tmp_path)

    def attempt(recipe, name, value):
        begun.clear()
        runs = len(list(tmp_path.iterdir()))
        output = [] if name == "output" else ["--output", tmp_path / f"{recipe}-{runs}"]
        try:
            launch(recipe, *base[recipe], *output, f"--{name.replace('_', '-')}={value}")
        except StartedError:
            return "started", ""
        except SystemExit as ended:
            told = capsys.readouterr().err
            assert ended.code == 2 and "error:" in told and "Traceback" not in told
            return "late" if begun else "refused", told[-600:]
        return "ended", ""

    return attempt


def all_of(recipe):
    return [(name, value) for name, kind in settings_of(recipe).items() for value in values_of(name, kind)]


# Values that once ended in a traceback, in hours of work or in a crash, and what the message must name.
KNOWN = [
    ("distill", "distiller.batch_size", "1000000000", "--distiller.batch-size 1000000000 needs at least"),
    ("distill", "distiller.batch_size", HUGE, "distiller.batch_size must be of type int"),
    ("distill", "pool.size", "1000000000", "pool.size must be at most"),
    ("distill", "method.args", "{pool: {size: 1048576}}", "pool.size must be at most"),
    ("distill", "teacher_training.view_args", "{min_scale: 2}", "teacher_training.view_args {'min_scale': 2}"),
    ("distill", "teacher_training.objective_args", "{output_dim: 1048576, hidden_dim: 1048576}", "barlow_twins"),
    ("distill", "teacher.mean", "text", "teacher.mean must be of type list[float]"),
    ("distill", "data.memory_budget_gb", "1e308", "must be from -1e+30 to 1e+30"),
    ("distill", "run.threads", "1000000000", "run.threads must be at most 4096"),
    ("distill", "run.cache", "x" * 300, "the file system takes no name as long as"),
    ("distill", "seed", HUGE, "seed must be of type int"),
    ("evaluate", "teacher.input_size", "32", "--teacher.input-size"),
    ("evaluate", "source.max_images", "5", "20 images of the source are to be selected"),
    ("evaluate", "evaluate.seeds", "1000000000", "evaluate.seeds must be at most"),
    ("compute_targets", "targets.views", "1000000000", "targets.views must be at most"),
    ("benchmark", "benchmark.num_source", "1000000000", "--benchmark.num-source 1000000000 needs at least"),
    ("gradient_bias", "bias.draws", "1000000000", "bias.draws must be at most"),
]


@pytest.mark.parametrize(("recipe", "name", "value", "words"), KNOWN)
def test_these_values_are_refused_by_name_before_any_work(attempt, recipe, name, value, words):
    outcome, told = attempt(recipe, name, value)
    assert outcome == "refused" and words in " ".join(told.split()), told


@pytest.mark.parametrize("recipe", CLASSES)
def test_some_values_of_every_recipe_start_or_are_refused(attempt, recipe):
    for name, value in random.Random(recipe).sample(all_of(recipe), 2):
        assert attempt(recipe, name, value)[0] in ("started", "refused", "ended"), (name, value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "section"), sorted({(recipe, name.split(".")[0]) for recipe in CLASSES for name, _ in all_of(recipe)})
)
def test_all_values_of_all_settings_start_or_are_refused(attempt, recipe, section):
    wrong = []
    for name, value in all_of(recipe):
        if name.split(".")[0] == section:
            outcome, told = attempt(recipe, name, value)
            wrong += [(name, value[:40], told)] if outcome == "late" else []
    assert not wrong
