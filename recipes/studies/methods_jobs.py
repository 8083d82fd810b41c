"""The sets and scores of a comparison of methods: settings in layers, and processes that make them."""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from distill import DistillConfig
from evaluate import EvaluateConfig
from ssdd_hub import DistilledSet, InputError
from ssdd_hub.distill.methods import METHODS
from ssdd_hub.errors import SettingsError
from ssdd_hub.evaluation.entries import size_of
from ssdd_hub.evaluation.inputs import name_sets
from ssdd_hub.files import atomic_path
from ssdd_hub.record import METADATA_FILE, hash_json
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.launch import LAUNCHER
from ssdd_hub.runs.lock import FolderLock
from ssdd_hub.runs.machine import count_cpus
from ssdd_hub.settings import parse_config, to_dict
from ssdd_hub.targets.labels import LABELS
from ssdd_hub.text import show_bytes

# Read as their recipes read theirs.
read_distill, read_evaluate = partial(parse_config, DistillConfig, None), partial(parse_config, EvaluateConfig, None)
RECIPES = Path(__file__).parents[1]
CONFIGS = Path("configs") / "methods"
_ABOVE = 1.1  # times its budget that a set may take
_WAIT = 120.0  # seconds that a process of a killed comparison may take to end its step
_LONGEST = 300  # characters of a failure


class Plan(NamedTuple):
    """A set to be made."""

    method: str
    budget: str
    seed: int

    @property
    def place(self) -> Path:
        """Its folder below that of all sets."""
        return Path(str(self.seed), f"{self.method}-{self.budget}".replace(" ", "-"))

    def __str__(self) -> str:
        return f"{self.method}, {self.budget}, seed {self.seed}"


class Layers:
    """Files of settings that `distill.py` and `evaluate.py` read one after the other.

    Args:
        config: The settings of the comparison.
    """

    def __init__(self, config: Any) -> None:
        self.config, self.output = config, Path(config.output)
        self.methods = config.methods or {path.stem: {} for path in sorted((RECIPES / CONFIGS).glob("*.yaml"))}
        seeds, order = range(config.seed, config.seed + config.seeds), (config.budgets, self.methods)
        self.plans = [Plan(method, budget, seed) for seed in seeds for budget, method in product(*order)]
        # Of all sets, which have one teacher; settings may name another place.
        self.cache = Path((config.distill.get("run") or {}).get("cache") or self.output / "features")

    def contents(self) -> dict[str, dict[str, Any]]:
        """Returns the content of each file, by its name."""
        files = {"distill": {**self.config.distill, "run": {"cache": str(self.cache), **self._run()}}}
        for kind, parts in {"budget": self.config.budgets, "method": self.methods}.items():
            for name, part in parts.items():
                files[f"{kind}-{name}"] = {k: v for k, v in (part or {}).items() if k not in ("bytes", "config")}
        return files | {f"evaluation-{name}": dict(part or {}) for name, part in self.config.evaluations.items()}

    def _run(self) -> dict[str, Any]:
        return dict(self.config.distill.get("run") or {})

    def texts(self, folder: Path) -> dict[Path, str]:
        """Returns the text of each file, by its place in a folder."""
        files = self.contents().items()
        return {folder / f"{name}.yaml": yaml.safe_dump(content, sort_keys=False) for name, content in files}

    def write(self, folder: Path) -> None:
        """Writes all files."""
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in self.texts(folder).items():
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def words(self, plan: Plan, folder: Path, threads: int) -> list[str]:
        """Returns the options of `distill.py` that make a set."""
        own = self.methods[plan.method] or {}
        base = own.get("config", plan.method)
        first = RECIPES / CONFIGS / f"{base}.yaml"
        files = [first] if base and ("config" in own or first.exists()) else []
        files += [folder / f"{name}.yaml" for name in ("distill", f"budget-{plan.budget}", f"method-{plan.method}")]
        words = [word for path in files for word in ("--config", str(path))]
        more = {"seed": plan.seed, "run.threads": threads, "run.estimate": "false"}
        more |= {"output": self.output / "sets" / plan.place}
        more |= {} if own.get("config") or files[0] == first else self._method(plan)
        return [*words, *(f"--{name}={value}" for name, value in more.items())]

    def _method(self, plan: Plan) -> dict[str, str]:
        """Returns the option of the method that a row without a file is called after, where no layer names one."""
        layers = (self.config.distill, self.config.budgets[plan.budget], self.methods[plan.method])
        if any("name" in ((part or {}).get("method") or {}) for part in layers):
            return {}
        if plan.method in METHODS.names():
            return {"method.name": plan.method}
        if "config" in (self.methods[plan.method] or {}):
            return {}
        raise InputError(
            f"methods must be named after a file of {CONFIGS} or a method ({', '.join(METHODS.names())}), got "
            f"{plan.method!r}: correct it, or give it `method: {{name: NAME}}`, or a file by `config: OTHER`"
        )

    def check(self) -> tuple[dict[Plan, DistillConfig], dict[str, EvaluateConfig]]:
        """Returns the settings of sets and evaluations; raises an `InputError` with all mistakes of all layers."""
        found, asked, problems = dict[Plan, DistillConfig](), dict[str, EvaluateConfig](), dict[str, None]()

        def note(name: str, error: InputError) -> None:
            told = error.problems if isinstance(error, SettingsError) else [str(error)]
            problems.update(dict.fromkeys(f"{name}: {problem}" for problem in told))

        with tempfile.TemporaryDirectory() as scratch:
            self.write(Path(scratch))
            for plan in self.plans:
                try:
                    found[plan] = settings = read_distill(self.words(plan, Path(scratch), 1))
                    # Refuses a set of other settings that is there, before hours are spent on the others.
                    RunFolder(Path(settings.output), to_dict(settings), is_main=False, defaults=DistillConfig())
                except InputError as error:
                    note(f"{plan.method}, {plan.budget}", error)
            # As an evaluation has them of its first set.
            stated = {"student_training": to_dict(next(iter(found.values())).student_training)} if found else {}
            for title in self.config.evaluations:
                words = ["--config", str(Path(scratch, f"evaluation-{title}.yaml")), "--set", "a"]
                try:
                    asked[title] = read_evaluate(words, stated=lambda values: stated)
                except InputError as error:
                    note(f"evaluations, {title}", error)
        for plan, settings in found.items():
            if not (settings.teacher.ready or settings.targets.of == LABELS):
                problems[f"{plan.method}: all sets need one teacher, ready made: distill.teacher.pretrained true"] = (
                    None
                )
        places = [str(plan.place) for plan in self.plans] + [title.replace(" ", "-") for title in asked]
        if len({*places}) < len(places):
            problems["names must differ by more than a space and a dash, also those of methods joined to budgets"] = (
                None
            )
        if problems:
            raise SettingsError(list(problems))
        return found, asked


class Jobs:
    """The processes of a comparison.

    Args:
        config: Its settings.
        layers: Those of the recipes that it runs.
        run: Its folder.

    Attributes:
        failures: What failed, each with its reason.
        labels: A name for the table of each set, by its folder.
    """

    def __init__(self, config: Any, layers: Layers, run: RunFolder) -> None:
        self.config, self.layers, self.run = config, layers, run
        self.threads = config.run.threads or max(1, count_cpus() // config.workers)
        self.failures = list[dict[str, str]]()
        several = len(config.budgets) > 1
        self.labels = {
            self.folder(plan): f"{plan.method} {plan.budget}" if several else plan.method for plan in layers.plans
        }
        self._texts = layers.texts(layers.output / "settings")
        self._writing = threading.Lock()

    def folder(self, plan: Plan) -> Path:
        """Returns the run folder of a set."""
        return self.layers.output / "sets" / plan.place

    def words(self, plan: Plan) -> list[str]:
        """Returns the options that make a set."""
        return self.layers.words(plan, self.layers.output / "settings", self.threads)

    def start(self, told: Mapping[str, Any]) -> None:
        """Writes the files of settings, and the estimate into the log."""
        self.layers.write(self.run.path / "settings")
        # What a kill has left of a line.
        self.run.log.rewind("estimate", 0)
        self.run.log.write([{"stage": "estimate", "step": 1, **told}])

    def is_made(self, plan: Plan) -> bool:
        """Whether a set was finished with the settings that it has now."""
        made = (self.folder(plan) / "distilled" / METADATA_FILE).is_file()
        return made and self._kept(f"sets-{plan.place}") == self._identity(self.words(plan))

    def make_sets(self, settings: Mapping[Plan, DistillConfig]) -> list[Plan]:
        """Makes the sets that are not there, by their settings; returns those that are in the end."""
        # The first one alone computes the features of the source, which the others take.
        alone = 1 if any(each.targets.of != LABELS for each in settings.values()) else 0
        numbered = list(enumerate(self.layers.plans, 1))
        made = [self._make(*each) for each in numbered[:alone]]
        with ThreadPoolExecutor(self.config.workers) as pool:
            made += pool.map(lambda each: self._make(*each), numbered[alone:])
        return [plan for plan, done in zip(self.layers.plans, made, strict=True) if done]

    def _make(self, number: int, plan: Plan) -> bool:
        words, about = self.words(plan), {"method": plan.method, "budget": plan.budget, "seed": plan.seed}
        name, folder = f"sets-{plan.place}", self.folder(plan)
        done = self.is_made(plan) or self._launch("distill", name, words, folder, number, about)
        return done and self._fits(plan, about)

    def _fits(self, plan: Plan, about: Mapping[str, Any]) -> bool:
        budget = (self.config.budgets[plan.budget] or {}).get("bytes")
        if budget is None:
            return True
        size = size_of(DistilledSet.load(self.folder(plan) / "distilled"))["bytes"]
        if size <= _ABOVE * budget:
            return True
        reason = f"it takes {show_bytes(size)}, where the budget is {show_bytes(budget)}: lower distiller.num_images"
        self._fail(str(plan), reason)
        return False

    def score(self, sets: Sequence[Plan]) -> dict[str, dict[int, list[dict[str, Any]]]]:
        """Scores sets beside references; returns the records of each seed, by the title of the evaluation."""
        budgets = self._budgets(sets)
        seeds = list(dict.fromkeys(plan.seed for plan in sets))
        found: dict[str, dict[int, list[dict[str, Any]]]] = {title: {} for title in self.config.evaluations}
        for number, (seed, title) in enumerate(product(seeds, found), 1):
            chosen = [self.folder(plan) for plan in sets if plan.seed == seed]
            output = self.layers.output / "evaluations" / f"{title}-{seed}".replace(" ", "-")
            layer = self.layers.output / "settings" / f"evaluation-{title}.yaml"
            words = ["--config", str(layer), *(f"--set={folder / 'distilled'}" for folder in chosen)]
            more = {"seed": seed, "cache": self.layers.cache, "output": output}
            more |= {"budgets": ",".join(map(str, budgets))} if budgets else {}
            words += [f"--{name}={value}" for name, value in more.items()]
            records = [(folder / "distilled" / METADATA_FILE).read_text(encoding="utf-8") for folder in chosen]
            name, about = f"evaluations-{output.name}", {"evaluation": title, "seed": seed}
            kept = self._kept(name) == self._identity(words, records) and (output / "scores.json").is_file()
            if kept or self._launch("evaluate", name, words, output, number, about, records):
                names = dict(zip(name_sets(list(map(str, chosen))), chosen, strict=True))
                scores = json.loads((output / "scores.json").read_text(encoding="utf-8"))["records"]
                found[title][seed] = [
                    {**each, "set": self.labels.get(names.get(each["set"]), each["set"])}  # type: ignore[arg-type]
                    for each in scores
                ]
        return found

    def _budgets(self, sets: Sequence[Plan]) -> list[int]:
        """Returns the bytes that references fill: of each budget in bytes, those of its largest set, or more."""
        found = []
        for name, part in self.config.budgets.items():
            folders = [self.folder(plan) / "distilled" for plan in sets if plan.budget == name]
            if (part or {}).get("bytes") and folders:
                found.append(max(part["bytes"], *(size_of(DistilledSet.load(each))["bytes"] for each in folders)))
        return found

    def _launch(
        self,
        recipe: str,
        name: str,
        words: list[str],
        folder: Path,
        number: int,
        about: Mapping[str, Any],
        inputs: Sequence[str] = (),
    ) -> bool:
        """Runs a recipe in a process of its own, which ends with this one; returns whether it succeeded."""
        started, log = time.perf_counter(), self.run.path / "logs" / f"{_file(name)}.txt"
        self.run.tell(f"{name}: {log}")
        try:
            _wait_for(folder)
            log.parent.mkdir(exist_ok=True)
            with log.open("ab") as file:
                command = [sys.executable, str(RECIPES / f"{recipe}.py"), *words]
                environment = {**os.environ, LAUNCHER: str(os.getpid())}
                ended = subprocess.run(command, stdout=file, stderr=file, env=environment, stdin=subprocess.DEVNULL)
            reason = _reason(log, ended.returncode) if ended.returncode else ""
        except (InputError, OSError) as error:
            reason = str(error)
        seconds = time.perf_counter() - started
        if reason:
            self._fail(name, reason)
        else:
            self._keep(name, self._identity(words, inputs), seconds)
        told = {"stage": recipe, "step": number, **about, "seconds": round(seconds, 1), "failed": reason or None}
        with self._writing:
            self.run.log.write([told])
        return not reason

    def _fail(self, name: str, reason: str) -> None:
        self.run.tell(f"{name} failed: {reason}")
        self.failures.append({"name": name, "reason": reason[:_LONGEST]})

    def _identity(self, words: Sequence[str], inputs: Sequence[str] = ()) -> str:
        """Returns a hash of the settings of a job, those in files included, and of what it reads."""
        files = [Path(word) for before, word in zip(words, words[1:], strict=False) if before == "--config"]
        texts = [self._texts.get(file) or file.read_text(encoding="utf-8") for file in files]
        given = [word for word in words if not word.startswith(("--run.threads=", "--run.estimate="))]
        return hash_json([given, texts, list(inputs)])

    def _kept(self, name: str) -> str | None:
        try:
            path = self.run.path / "done" / f"{_file(name)}.json"
            return str(json.loads(path.read_text(encoding="utf-8"))["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _keep(self, name: str, identity: str, seconds: float) -> None:
        path = self.run.path / "done" / f"{_file(name)}.json"
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({"identity": identity, "seconds": seconds}), encoding="utf-8")


def _file(name: str) -> str:
    return name.replace("/", "-")


def _wait_for(folder: Path) -> None:
    """Waits until a process of a killed comparison has left a folder."""
    deadline = time.monotonic() + _WAIT
    while True:
        try:
            with FolderLock(folder):
                return
        except InputError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _reason(log: Path, status: int) -> str:
    """Returns why a process failed: its last message, or the last line that it wrote."""
    text = log.read_bytes()[-20_000:].decode(errors="replace")
    lines = [line.strip() for line in re.split("[\r\n]+", text) if line.strip()]
    told = next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "")
    return f"{told} (status {status})"
