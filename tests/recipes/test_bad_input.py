"""Bad input: a message that names the problem and what to do, no traceback, nothing half-written."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SMOKE = Path(__file__).parents[2] / "recipes" / "configs" / "smoke.yaml"


def picture(folder, name="train/0.png", size=(16, 16)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 10, 30)).save(path)
    return path


def make_folder(folder, kind):
    """Makes a folder of images that is wrong in one way."""
    for index in range(30):
        picture(folder, f"train/{index}.png")
    picture(folder, "test/0.png")
    if kind == "corrupt":
        (folder / "train" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    elif kind == "two-sizes":
        picture(folder, "train/4.png", (24, 16))
    elif kind == "no-images":
        for path in folder.rglob("*.png"):
            path.unlink()
        (folder / "train" / "notes.csv").write_text("text\nhello\n")
        (folder / "test" / "notes.csv").write_text("text\nhello\n")


# Arguments, and what the message must say. `{folder}` is the folder of `make_folder`, `{tmp}` a scratch folder.
CASES = {
    "unknown setting": (["--distiller.num-image", "5"], ["distiller.num_image", "distiller.num_images"]),
    "unknown setting in YAML": (["--config", "{tmp}/unknown.yaml"], ["pool.sizes", "pool.size"]),
    "wrong type": (["--distiller.steps", "many"], ["distiller.steps", "many"]),
    "several mistakes": (
        ["--pool.size", "0", "--distiller.ridge", "-1", "--seeds", "3"],
        ["pool.size must be at least 1, got 0", "distiller.ridge", "seeds is not a setting"],
    ),
    "config file absent": (["--config", "{tmp}/absent.yaml"], ["absent.yaml", "cannot be read"]),
    "config file no YAML": (["--config", "{tmp}/broken.yaml"], ["broken.yaml", "cannot be read as YAML"]),
    "config file with code": (["--config", "{tmp}/code.yaml"], ["code.yaml", "cannot be read as YAML"]),
    "folder absent": (["--data.name", "./no/such/folder"], ["'./no/such/folder' does not exist"]),
    "a file as folder": (["--data.name", "{tmp}/broken.yaml"], ["is a file", "folder"]),
    "Hub out of reach": (["--data.name", "nobody/nothing"], ["nobody/nothing", "Hub"]),
    "wrong split": (["--data.name", "{folder}", "--data.split", "trian"], ["'trian'", "did you mean 'train'"]),
    "missing column": (["--data.name", "{folder}", "--data.image-column", "img"], ["'img'", "image"]),
    "missing label column": (["--data.name", "{folder}", "--data.label-column", "kind"], ["kind"]),
    "corrupt image": (["--data.name", "{folder:corrupt}"], ["3.png", "--data.on-corrupt skip"]),
    "images of two sizes": (["--data.name", "{folder:two-sizes}"], ["--data.image-size"]),
    "no images": (["--data.name", "{folder:no-images}"], ["image"]),
    "more images than there are": (["--distiller.num-images", "500"], ["500 distilled images", "there are 200"]),
    "split held out from itself": (["--data.heldout-split", "train"], ["heldout-split must differ"]),
    "unknown teacher": (["--teacher.backbone", "resnet1800"], ["resnet1800", "timm.list_models"]),
    "teacher not loaded": (["--teacher.backbone", "local-dir:here"], ["local-dir:here", "--teacher.pretrained true"]),
    "teacher absent": (
        ["--teacher.backbone", "local-dir:{tmp}/gone", "--teacher.pretrained", "--teacher.model-args", "{{}}"],
        ["gone", "model.safetensors"],
    ),
    "unknown student": (["--student.name", "ssdd_convnet9"], ["ssdd_convnet9", "ssdd_convnet3"]),
    "student too deep": (["--student.model-args.widths", "[4, 4, 4, 4, 4]"], ["at least 32 pixels", "got 16"]),
    "unknown student argument": (["--student.model-args.colour", "3"], ["colour"]),
    "unknown objective": (["--teacher-training.objective", "simclear"], ["simclear", "barlow_twins"]),
    "unknown objective setting": (["--teacher-training.objective-args.tau", "0.1"], ["tau"]),
    "unknown view setting": (["--teacher-training.view-args.zoom", "2"], ["zoom"]),
    "unsupported precision": (["--run.mixed-precision", "fp16"], ["no or bf16", "fp16"]),
    "unknown tracker": (["--run.trackers", "[pencil]"], ["pencil"]),
    "more target dimensions than features": (
        ["--targets.transform", "pca", "--targets.dim", "100000"],
        ["--targets.dim 100000 exceeds the", "features of the teacher", "lower it"],
    ),
    "views that no set here has": (
        ["--student-training.augment", "views"],
        ["stores none", "flip or crop-flip"],
    ),
    "fewer candidates than images": (
        ["--init", "kcenter", "--selection.max-images", "10"],
        ["selection.max_images must be at least the 20 images to be chosen, got 10"],
    ),
    "a file as cache": (["--run.cache", "{tmp}/broken.yaml"], ["--run.cache", "broken.yaml is a file"]),
    "a cache inside a file": (["--run.cache", "{tmp}/broken.yaml/x"], ["broken.yaml/x is inside a file"]),
    "name of settings": (["--config", "smokes"], ["--config must be", "got 'smokes'; the nearest is smoke"]),
    "unknown optimizer": (["--teacher-training.optimizer", "adamwe"], ["'adamwe'; the nearest is adamw"]),
    "expert that is no network": (
        ["--init", "high_loss", "--selection.expert", "convnet3"],
        ["'convnet3' is not a timm model", "the nearest is ssdd_convnet3"],
    ),
    "expert on single images": (
        ["--init", "high_loss", "--selection.expert", "resnet10t", "--selection.expert-args", "{{}}"]
        + ["--selection.expert-batch-size", "1"],
        ["batches of 1 image(s)", "--selection.expert-batch-size"],
    ),
    "tracker that is not installed": (
        ["--run.trackers", "aim"],
        ["aim: not installed: pip install aim"],
    ),
    "share of labels above one": (["--probe.labels", "1.5"], ["probe.labels must be shares above 0 and at most 1"]),
    "address as data": (["--data.name", "https://huggingface.co/datasets/a/b"], ["does not exist", "a Hub id"]),
}


def fill(argument, tmp_path):
    if argument.startswith("{folder"):
        folder = tmp_path / "images"
        make_folder(folder, argument.strip("{}").partition(":")[2])
        return str(folder)
    return argument.format(tmp=tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_with_a_message_and_writes_nothing(refuse, case, tmp_path):
    (tmp_path / "unknown.yaml").write_text("pool: {sizes: 3}\n")
    (tmp_path / "broken.yaml").write_text("pool: [3\n")
    (tmp_path / "code.yaml").write_text("seed: !!python/object/apply:os.system ['touch hacked']\n")
    arguments, expected = CASES[case]
    arguments = [fill(argument, tmp_path) for argument in arguments]
    refuse(expected, "distill", "--config", SMOKE, "--output", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_a_run_inside_the_folder_of_its_images_is_refused(refuse, tmp_path):
    make_folder(tmp_path / "images", "")
    given = ["--data.name", tmp_path / "images", "--output", tmp_path / "images" / "runs" / "x"]
    for recipe in ("distill", "train_teacher"):
        refuse(["is inside --data.name", "choose another --output"], recipe, *given)
    assert not (tmp_path / "images" / "runs").exists()


# A run that is whole: `{run}` is its folder. Arguments by recipe, and what the message must say.
OTHERS = {
    "folder of a run as set": (
        "evaluate",
        ["--set", "{run}"],
        ["is not a distilled set", "of this run is {run}/distilled"],
    ),
    "misspelt folder of a set": (
        "evaluate",
        ["--set", "{run}/distiled"],
        ["here; the nearest is distilled"],
    ),
    "misspelt run of a set": ("evaluate", ["--set", "{run}s/distilled"], ["no such folder here; the nearest is run"]),
    "misspelt dataset": ("evaluate", ["--set", "{run}/distilled", "--datasets", "sorce"], ["the nearest is source"]),
    "misspelt protocol": ("evaluate", ["--set", "{run}/distilled", "--protocol", "prob"], ["the nearest is probe"]),
    "misspelt reference": ("evaluate", ["--set", "{run}/distilled", "--references", "randon"], ["nearest is random"]),
    "file as cache": ("evaluate", ["--set", "{run}/distilled", "--cache", "{run}/log.jsonl"], ["log.jsonl is a file"]),
    "too few candidates": (
        "evaluate",
        ["--set", "{run}/distilled", "--references", "herding", "--selection.max-images", "5"],
        ["--selection.max-images must be at least the 20 to be chosen, got 5"],
    ),
    "teacher's folder as set": ("evaluate", ["--set", "{run}/teacher"], ["not the record of a distilled set"]),
    "misspelt backbone": (
        "train_teacher",
        ["--teacher.backbone", "resnet81"],
        ["the nearest is resnet"],
    ),
    "folder in a file": ("train_teacher", ["--output", "{run}/log.jsonl/x"], ["log.jsonl/x is inside a file"]),
    "trained teacher": ("train_teacher", ["--teacher.pretrained"], ["trains a teacher from fresh weights"]),
    "folder of another recipe": ("train_teacher", ["--output", "{run}"], ["holds a run with other settings"]),
    "no teacher": ("compute_targets", [], ["ready-made teacher", "--teacher.pretrained"]),
    "trackers of features": ("compute_targets", ["--run.trackers", "trackio"], ["run.trackers must be left out here"]),
    "features in a file": (
        "compute_targets",
        ["--teacher.backbone", "local-dir:{run}/teacher", "--teacher.pretrained", "--output", "{run}/log.jsonl"],
        ["--output", "log.jsonl is a file"],
    ),
    "run as set to publish": (
        "publish",
        ["--set", "{run}", "--repo", "me/x", "--dry-run"],
        ["is not a distilled set"],
    ),
    "no repository": ("publish", ["--set", "{run}/distilled", "--dry-run"], ["--repo owner/name"]),
    "log as scores": (
        "publish",
        ["--set", "{run}/distilled", "--repo", "me/x", "--scores", "{run}/log.jsonl", "--dry-run"],
        ["log.jsonl cannot be read as scores.json"],
    ),
}


@pytest.fixture(scope="module")
def made(launch, tmp_path_factory):
    """A small run."""
    folder = tmp_path_factory.mktemp("made") / "run"
    few = ["--distiller.steps", "1", "--student-training.epochs", "1", "--teacher-training.max-steps", "1"]
    launch("distill", "--config", SMOKE, "--evaluate.seeds", "1", *few, "--output", folder)
    return folder


@pytest.mark.parametrize("case", OTHERS)
def test_bad_input_of_other_recipes_ends_with_a_message_and_writes_nothing(refuse, made, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, arguments, words = OTHERS[case]
    before = sorted(made.rglob("*"))
    output = [] if "--output" in arguments else ["--output", tmp_path / "out"]
    filled = [argument.format(run=made) for argument in arguments]
    refuse([word.format(run=made) for word in words], recipe, *filled, *output)
    assert sorted(made.rglob("*")) == before and not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_else_is_left_alone(refuse, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    refuse(["not empty and holds no run"], "distill", "--config", SMOKE, "--output", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_is_not_mixed_with_other_settings(refuse, tmp_path):
    stored = "seed: 3\ndata: {name: digits}\n"
    (tmp_path / "config.yaml").write_text(stored)
    refuse(["seed: 3 there, 0 now"], "distill", "--config", SMOKE, "--output", tmp_path)
    assert (tmp_path / "config.yaml").read_text() == stored


def test_unknown_names_are_reported_together_before_anything_is_printed(launch, capsys):
    with pytest.raises(SystemExit):
        launch("distill", "--method", "mean", "--init", "herd", "--pool.size", "0")
    printed = capsys.readouterr()
    assert [line.split()[1] for line in printed.err.splitlines()[1:]] == ["pool.size", "init", "method"]
    assert printed.out == ""


HOLD = "import sys, time; from pathlib import Path; from ssdd_hub.runs.lock import FolderLock\n"
HOLD += "FolderLock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def holder(tmp_path_factory):
    """A folder, and the process that has it to itself."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield folder, process.pid
        process.kill()


# The others begin by the same function; `evaluate` needs a set before that.
RECIPES = ["distill", "train_teacher", "benchmark", "gradient_bias", "time_to_quality"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_folder_that_another_process_uses_is_refused_by_every_recipe(refuse, holder, recipe):
    folder, process = holder
    words = [f"{folder} is in use by process {process} on", "wait until it ends"]
    refuse(words, recipe, "--output", folder, "--run.mixed-precision", "no")
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".owner.json"]


def test_steps_too_small_for_the_images_are_refused_before_a_teacher_is_trained(refuse, tmp_path):
    """The rehearsal sees them in the space that they are learned in."""
    words = ("--distiller.steps", 100, "--parameterisation", "dct", "--parameterisation.args", "{step: 0.06}")
    refuse(
        ["step 0.06 stores values up to", "take a step of at least"],
        "distill",
        "--config",
        SMOKE,
        *words,
        "--output",
        tmp_path / "run",
    )
    assert not (tmp_path / "run").exists()
