"""`ssdd-hub` runs the very recipes, answers at once, and lists what is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

import ssdd_hub
from ssdd_hub.cli import main
from ssdd_hub.distill.methods.registry import METHODS
from ssdd_hub.procedures import RECIPES, load_recipe
from ssdd_hub.teachers.objectives.registry import OBJECTIVES

ROOT = Path(__file__).parents[1]
SECONDS = 1.0  # of CPU, that import and help may take
# A process of its own, which says what it has used.
SPENT = (
    "import os, sys; print(sum(os.times()[:2]), *{'torch', 'datasets', 'huggingface_hub', 'numpy'} & set(sys.modules))"
)


@pytest.mark.parametrize("name", RECIPES)
def test_a_word_runs_the_recipe_of_the_clone_with_its_options(name, monkeypatch, capsys):
    module = load_recipe(name)
    assert Path(module.__file__) == ROOT / "recipes" / f"{name.replace('-', '_')}.py"
    option, value = ("--repo", "ann/x") if name == "publish" else ("--seed", "7")
    before = list(sys.argv)
    place = ["model_cards/cifar100-krrst-100"] if name in ("evaluate", "audit") else []
    monkeypatch.chdir(ROOT)
    assert main([name, *place, option, value, "--print-config"]) == 0
    assert f"{option[2:]}: {value}\n" in capsys.readouterr().out
    assert sys.argv == before


def test_a_folder_that_is_called_like_settings_is_none(monkeypatch, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["distill", "photos", "--print-config"]) == 0
    assert "name: photos\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "resolved"),
    [
        (["distill", "a/b", "--seed", "1"], ["name: a/b", "seed: 1"]),
        (["train-teacher", "a/b"], ["name: a/b"]),
        (["compute-targets", "a/b"], ["name: a/b"]),
        (["publish", "runs/a/distilled", "ann/x"], ["set: runs/a/distilled", "repo: ann/x"]),
    ],
)
def test_the_first_words_name_the_place(words, resolved, capsys):
    assert main([*words, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert not [line for line in resolved if line not in printed]


def test_a_mistake_ends_with_the_message_of_the_recipe_and_status_2(capsys):
    assert main(["distill", "digits", "--pool.sise", "3"]) == 2
    assert "pool.sise is not a setting; the nearest is pool.size" in capsys.readouterr().err
    assert main(["distill", "digits", "another"]) == 2
    assert "a setting is written --name value; got 'another' alone" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["push", "--help"]])
def test_help_and_version_import_nothing_heavy(words):
    code = f"from ssdd_hub.cli import main\ntry:\n    main({words!r})\nexcept SystemExit:\n    pass\n{SPENT}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (seconds, *heavy), shown = done.stdout.splitlines()[-1].split(), done.stdout
    assert heavy == [] and float(seconds) <= SECONDS
    if words == ["--version"]:
        assert shown.startswith(f"ssdd-hub {ssdd_hub.__version__}\n")
    if words == ["--help"]:
        assert not [name for name in RECIPES if f" {name}" not in shown]


def test_what_is_installed_is_listed_with_paper_settings_and_status(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {**METHODS.known, **OBJECTIVES}
    for name, found in listed.items():
        place = lines.index(f"  {name}")
        assert lines[place + 1] == f"    paper: {found.citation}"
        assert lines[place + 3] == "    status: available"
        assert lines[place + 4].startswith("    purpose: ") and "not stated" not in lines[place + 4]
    assert "    settings: ridge=1e-06, inner_steps=1, pool=--pool.*, set_batch=None" in lines
    assert "    settings: hidden_dim=2048, output_dim=2048, lambda_param=0.005" in lines


def test_a_method_that_cannot_be_imported_is_listed_with_the_reason(monkeypatch, capsys):
    from importlib.metadata import EntryPoint

    broken = EntryPoint("broken", "no_such_module:Method", "ssdd_hub.methods")
    monkeypatch.setattr(
        "ssdd_hub.distill.registry.entry_points",
        lambda group, name=None: [broken] if group == "ssdd_hub.methods" and name in (None, "broken") else [],
    )
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    status = lines[lines.index("  broken") + 1]
    assert status.startswith("    status: cannot be used: method 'broken'") and "no_such_module" in status


def test_the_tab_key_completes_commands_and_the_options_of_recipes(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "ssdd-hub.bash"
    script.write_text(capsys.readouterr().out)

    def complete(*words):
        line = " ".join(f"'{word}'" for word in words)
        code = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_ssdd_hub"
        done = subprocess.run(["bash", "-c", f"{code}; echo ${{COMPREPLY[@]}}"], capture_output=True, text=True)
        return done.stdout.split()

    assert complete("ssdd-hub", "dis") == ["distill"]
    assert complete("ssdd-hub", "distill", "--pool.m") == ["--pool.max-age", "--pool.momentum"]
    assert complete("ssdd-hub", "push", "--dry") == ["--dry-run"]


def test_completion_without_shtab_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "zsh"]) == 2
    assert "pip install 'ssdd-hub[complete]'" in capsys.readouterr().err
