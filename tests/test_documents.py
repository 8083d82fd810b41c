"""The pages: their links, commands, code and lengths, and what they state of the package."""

import dataclasses
import importlib.util
import os
import re
import resource
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from reference.warm import Running

import ssdd_hub
from ssdd_hub import cli
from ssdd_hub.procedures import RECIPES as WORDS, spell_out
from ssdd_hub.settings import parse_config
from ssdd_hub.teachers.objectives.registry import OBJECTIVES

ROOT = Path(__file__).parents[1]
RECIPES = [path for path in sorted((ROOT / "recipes").rglob("*.py")) if "parse_config(" in path.read_text("utf-8")]
PAGES = [
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "recipes/**/*.md", "model_cards/*.md")
    for page in sorted(ROOT.glob(pattern))
]
QUICK = 30  # seconds of CPU, which are more where cores share units
# What stands for a value in a command, where a setting takes no text.
PLACEHOLDERS = {"S": "0"}


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page):
    """Returns a page without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```$", "", read(page))


def code_of(page):
    return re.findall(r"(?ms)^```python\n(.*?)^```$", read(page))


def table_rows(text):
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


def commands(page):
    """Returns the commands of a page, as lists of words: those of blocks, and those in running text."""
    blocks = re.findall(r"(?ms)^```\n(.*?)^```$", read(page))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]
    # What ends a command after a time is none of ours.
    lines = [re.sub(r"^timeout -s TERM \d+ ", "", line) for line in lines]
    on_cpu = tuple(f"ACCELERATE_USE_CPU=true {launcher} " for launcher in ("accelerate launch", "torchrun"))
    starts = ("accelerate launch ", "python recipes/", *on_cpu, "ssdd-hub ")
    return [shlex.split(re.sub(r"\[(.*?)\]", "", line), comments=True) for line in lines if line.startswith(starts)]


@cache
def load(recipe):
    """Returns the module of a recipe and the class of its settings."""
    spec = importlib.util.spec_from_file_location(f"documented_{recipe.stem}", recipe)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    (name,) = re.findall(r"parse_config\((\w+)", recipe.read_text(encoding="utf-8"))
    return module, getattr(module, name)


def settings_of(kind, prefix=""):
    """Yields the names of all settings, and whether each is a dictionary, whose entries are names as well."""
    for entry in dataclasses.fields(kind):
        if dataclasses.is_dataclass(entry.type):
            yield from settings_of(entry.type, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", str(entry.type).startswith("dict")
    yield from ((name, False) for name in getattr(kind, "SHORT", {}))


def test_pages_are_found_and_short():
    assert {"README.md", "CONTRIBUTING.md", "recipes/README.md", "model_cards/README.md"} < set(PAGES)
    lengths = {page: len(read(page).splitlines()) for page in PAGES}
    assert lengths["README.md"] <= 120
    assert {page: lines for page, lines in lengths.items() if lines > 150} == {}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    links = ("".join(pair) for pair in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", prose(page)))
    for link in (link for link in links if "://" not in link):
        name, _, heading = link.partition("#")
        target = ((ROOT / page).parent / name if name else ROOT / page).resolve()
        assert target.is_file() and target.is_relative_to(ROOT), link
        if heading:
            titles = re.findall(r"(?m)^#+ (.*)$", prose(target.relative_to(ROOT)))
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], link


def test_every_page_of_the_recipes_is_linked_from_the_readme():
    assert set(re.findall(r"\]\((recipes/[\w/]+\.md)", read("README.md"))) == {p for p in PAGES if p[:8] == "recipes/"}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page):
    folders = "recipes|src|tests|configs|model_cards"
    for name in re.findall(rf"(?<![\w/.])(?:{folders})/[\w/.-]+\.(?:py|yaml|md)", read(page)):
        assert (ROOT / name).exists() or (ROOT / "recipes" / name).exists(), name


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_every_command_is_understood(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        words = [PLACEHOLDERS.get(word, word) for word in words]
        if words[0] == "ssdd-hub" and words[1:2] and words[1] in WORDS:
            words = [f"recipes/{words[1].replace('-', '_')}.py", *spell_out(words[1], words[2:])]
        if words[0] == "ssdd-hub":
            if len(words) > 2:
                cli._build_parser().parse_args(words[1:])
            continue
        recipe = next((word for word in words if word.endswith(".py")), None)
        if recipe is None:  # of `accelerate launch` itself
            continue
        given = words[words.index(recipe) + 1 :]
        if ROOT / recipe not in RECIPES:  # without settings
            assert (ROOT / recipe).is_file() and not given
            continue
        module, config = load(ROOT / recipe)
        default = None if "--set" in given else getattr(module, "DEFAULT", None)
        with pytest.raises(SystemExit) as ended:
            parse_config(config, default, [*given, "--print-config"])
        assert ended.value.code == 0, words


@pytest.mark.parametrize("page", PAGES)
def test_every_option_in_running_text_exists(page):
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]
    options = {word for span in spans if span.startswith("--") for word in re.findall(r"--[a-z][\w.-]*", span)}
    known = {name: holds for recipe in RECIPES for name, holds in settings_of(load(recipe)[1])}
    own = own_options()
    for option in options - {"--config", "--print-config", "--help", "--quiet", "--section.name"}:
        name = option[2:].replace("-", "_")
        parents = (name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1))
        assert name in known or any(known.get(parent) for parent in parents) or option in own, option


@cache
def own_options():
    """Returns the options of `ssdd-hub`."""
    parser = cli._build_parser()
    commands = next(action.choices for action in parser._actions if action.choices)
    return {option for command in commands.values() for action in command._actions for option in action.option_strings}


def test_every_objective_is_listed_with_its_paper_and_what_it_keeps_and_named_in_the_readme():
    for name, objective in OBJECTIVES.items():
        row = f"| `{name}` | {objective.citation} | {', '.join(objective.needs) or '-'} |"
        assert row in read("recipes/teachers.md").splitlines()
    assert f"any of {len(OBJECTIVES)} objectives" in read("README.md")
    assert f"| objectives of teachers | {', '.join(sorted(OBJECTIVES))} |" in read("README.md")


def test_the_checks_of_what_somebody_else_may_decide_exist():
    listed = read("recipes/untrusted.md")
    found = (re.match(r"`(\w+\.\w+)`", row[-1]) for row in table_rows(listed))
    checks = {match[1] for match in found if match}
    assert len(table_rows(listed)) >= 27 and len(checks) > 10
    for check in checks:
        module, name = check.split(".")
        (path,) = (ROOT / "src").rglob(f"{module}.py")
        assert re.search(rf"(?m)^\s*(?:def {name}\b|{name}\b.* = )", path.read_text(encoding="utf-8")), check


def test_the_scores_of_the_readme_are_those_of_the_page_on_compact_sets():
    scores = re.findall(r"\d[\d.]* ± [\d.]+", read("README.md").split("## Does it help?")[1])
    assert len(scores) == 12
    assert set(scores) <= set(re.findall(r"\d[\d.]* ± [\d.]+", read("recipes/compact_results.md")))


def run_alone(code, folder, **environment):
    """Runs code in a process of its own, without a network and with empty caches; returns its output and CPU time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_first_example_runs_in_seconds_and_prints_what_the_readme_shows(tmp_path):
    output, seconds = run_alone(code_of("README.md")[0], ROOT, HF_HOME=str(tmp_path))
    shown = re.search(r"prints, for example, `(.*?)`", read("README.md"))[1]
    assert re.sub(r"error 0\.[2-4]", "error 0.3", output.strip()) == shown
    assert seconds < QUICK


@pytest.mark.slow
def test_the_example_in_plain_pytorch_distils(tmp_path):
    check = "assert losses[-1] < losses[len(losses) - 20]\nprint(distilled.images.shape, distilled.targets.shape)"
    (tmp_path / "example.py").write_text(f"{code_of('README.md')[1]}\n{check}\n", encoding="utf-8")
    assert Running(tmp_path / "example.py").finish() == "torch.Size([50, 1, 16, 16]) torch.Size([50, 256])\n"


def test_the_objective_of_the_example_in_plain_pytorch_trains():
    (example,) = code_of("recipes/teachers.md")
    names = {"view_1": torch.rand(4, 3, 32, 32), "view_2": torch.rand(4, 3, 32, 32)}
    exec(example, names)
    names["loss"].backward()
    assert names["loss"].isfinite() and names["backbone"].conv1.weight.grad.abs().sum() > 0
    assert isinstance(names["backbone"], timm.models.resnet.ResNet)


def test_the_example_of_what_was_released_loads_it(monkeypatch):
    monkeypatch.chdir(ROOT / "model_cards")
    names = {}
    exec(code_of("model_cards/README.md")[0], names)
    assert names["teacher"].feature_dim == names["distilled"].targets.shape[1]


def test_the_page_on_compact_sets_shows_the_bytes_that_its_code_prints(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(code_of("recipes/compact.md")[0], {})
    printed, page = capsys.readouterr().out.strip(), " ".join(read("recipes/compact.md").split())
    whole, small = (eval(part + "}") for part in printed.replace("} {", "}|{").replace("}", "").split("|"))
    assert str(whole) in page
    # What zlib and zstd make of it differs a little between their versions.
    stated = eval(re.search(r"\} (\{'images': \d+, 'targets': \d+, 'decoder': \d+\})", page)[1])
    assert all(small[name] == pytest.approx(stated[name], rel=0.05) for name in stated)


def test_the_calls_of_the_recipes_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("matplotlib.figure.Figure.set_layout_engine", lambda *_, **__: None)
    drawn = torch.Generator().manual_seed(1)
    names = {"ssdd_hub": ssdd_hub, "images": torch.randint(0, 256, (80, 3, 16, 16), generator=drawn).byte()}
    exec(code_of("recipes/README.md")[0], names)
    assert names["distilled"].images.shape == (20, 3, 16, 16)
    assert {"random", "distilled"} <= {record["set"] for record in names["records"]}
