"""Bad input: a message that names the problem and the mend, no traceback, nothing half-written."""

import importlib.util
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
RECIPE, SMOKE = ROOT / "recipes" / "distill.py", ROOT / "recipes" / "configs" / "smoke.yaml"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("distill_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


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
    "several mistakes at once": (
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
    "more distilled than source images": (
        ["--distiller.num-images", "500"],
        ["500 distilled images", "there are 200", "--distiller.num-images"],
    ),
    "split held out from itself": (["--data.heldout-split", "train"], ["heldout-split must differ"]),
    "unknown teacher": (["--teacher.backbone", "resnet1800"], ["resnet1800", "timm.list_models"]),
    "stored teacher without its weights": (
        ["--teacher.backbone", "local-dir:somewhere"],
        ["local-dir:somewhere", "--teacher.pretrained true"],
    ),
    "teacher folder absent": (
        ["--teacher.backbone", "local-dir:{tmp}/gone", "--teacher.pretrained", "--teacher.model-args", "{{}}"],
        ["gone", "model.safetensors"],
    ),
    "unknown student": (["--student.name", "ssdd_convnet9"], ["ssdd_convnet9", "ssdd_convnet3"]),
    "student too deep": (
        ["--student.model-args.widths", "[4, 4, 4, 4, 4]"],
        ["at least 32 pixels", "got 16", "fewer widths"],
    ),
    "unknown student argument": (["--student.model-args.colour", "3"], ["colour"]),
    "unknown objective": (["--pretrain.objective", "simclear"], ["simclear", "barlow_twins"]),
    "unknown objective setting": (["--pretrain.objective-args.tau", "0.1"], ["tau"]),
    "unknown view setting": (["--pretrain.view-args.zoom", "2"], ["zoom"]),
    "unsupported precision": (["--run.mixed-precision", "fp16"], ["no or bf16", "fp16"]),
    "unknown tracker": (["--run.trackers", "[pencil]"], ["pencil"]),
}


def fill(argument, tmp_path):
    if argument.startswith("{folder"):
        folder = tmp_path / "images"
        make_folder(folder, argument.strip("{}").partition(":")[2])
        return str(folder)
    return argument.format(tmp=tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_with_a_message_and_writes_nothing(main, case, tmp_path, monkeypatch, capsys):
    (tmp_path / "unknown.yaml").write_text("pool: {sizes: 3}\n")
    (tmp_path / "broken.yaml").write_text("pool: [3\n")
    (tmp_path / "code.yaml").write_text("seed: !!python/object/apply:os.system ['touch hacked']\n")
    arguments, expected = CASES[case]
    arguments = [fill(argument, tmp_path) for argument in arguments]
    output = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--config", str(SMOKE), "--output", str(output), *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message.lstrip().startswith("error:") or "\nerror:" in message
    assert "Traceback" not in message
    for part in expected:
        assert part in message
    assert not output.exists()


def test_a_folder_that_holds_something_else_is_left_alone(main, tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--config", str(SMOKE), "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "not empty and holds no run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_is_not_mixed_with_other_settings(main, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    stored = "seed: 3\ndata: {name: digits}\n"
    (tmp_path / "run" / "config.yaml").write_text(stored)
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--config", str(SMOKE), "--output", str(tmp_path / "run")])
    with pytest.raises(SystemExit):
        main()
    assert "seed: 3 there, 0 now" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text() == stored
