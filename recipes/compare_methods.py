"""Makes a set with each of several methods at one budget, scores all of them alike, and writes the table into a page.

accelerate launch recipes/compare_methods.py
accelerate launch recipes/compare_methods.py --config cifar10_labelled --distill.data.name FOLDER

Sets are made by `recipes/distill.py` and scored by `recipes/evaluate.py`, each in a process of its own. Started again,
finished ones are kept and the others go on where they stopped. A method that fails is named below the table, the
others go on, and the exit status is 1.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssdd_hub.bounds import Processes, Repeats
from ssdd_hub.errors import require
from ssdd_hub.runs import UntrackedSettings, report_errors
from ssdd_hub.runs.begin import begin
from ssdd_hub.settings import parse_config
from studies.methods_estimate import estimate
from studies.methods_jobs import Jobs, Layers
from studies.methods_table import Page, is_name, join_scores, render

DEFAULT = Path(__file__).parent / "configs" / "methods_table.yaml"


@dataclass(frozen=True)
class CompareConfig:
    """Everything that decides a comparison of methods.

    Attributes:
        methods: Settings of `distill.py` of each method, by a name for the table; they come after those of
            `configs/methods/NAME.yaml` where there is such a file, or of another one of these by `config: OTHER` (null
            for none), `distill` and the budget. Without a file, a name is that of the method, unless one of these has
            `method: {name: OTHER}`. Without any, all files of `configs/methods`.
        distill: Settings of `distill.py` for all methods.
        budgets: Settings of `distill.py` of each size of a set, by its name, such as `{distiller: {num_images: 100}}`.
            `bytes: 300000` bounds what a set may take, give or take a tenth, and references are filled with the bytes
            of the largest set of a budget, `bytes` at least.
        evaluations: Settings of `evaluate.py`, by a title for the table.
        seeds: Sets of each method; references are drawn for each anew.
        workers: Sets that are made at the same time; they share the cores.
        page: A page with the lines `<!-- methods: NAME -->` and `<!-- end of methods: NAME -->`, between which the
            table is written; none where not given.
        name: That name.
        run: How the processes compute; `mixed_precision` is that of `distill.run`.
        seed: Seed of the first set of each method.
        output: The folder of sets, scores and table.
    """

    methods: dict[str, Any] = field(default_factory=dict)
    distill: dict[str, Any] = field(default_factory=dict)
    budgets: dict[str, Any] = field(default_factory=lambda: {"set": {}})
    evaluations: dict[str, Any] = field(default_factory=lambda: {"scores": {}})
    seeds: Repeats = 3
    workers: Processes = 1
    page: str | None = None
    name: str = "methods"
    run: UntrackedSettings = field(default_factory=UntrackedSettings)
    seed: int = 0
    output: str = "runs/methods"

    def __post_init__(self) -> None:
        named = {f"a name in {key}": list(getattr(self, key)) for key in ("methods", "budgets", "evaluations")}
        require(
            *(
                (
                    is_name(name),
                    f"{key} must be letters, digits, spaces, dots, dashes or underscores, and no reference; "
                    f"got {name!r}",
                )
                for key, names in {**named, "name": [self.name]}.items()
                for name in names
            ),
            (bool(self.budgets), "budgets must have one size at least: {small: {distiller: {num_images: 100}}}"),
            (bool(self.evaluations), "evaluations must have one at least: {scores: {protocols: [probe]}}"),
            *(
                (isinstance(part, dict | None), f"{key} must hold settings for {name}, got {part!r}")
                for key in ("methods", "budgets", "evaluations")
                for name, part in getattr(self, key).items()
            ),
        )


@report_errors
def main() -> None:
    """Settings of all sets; estimate; sets; scores; table."""
    started = time.perf_counter()
    config = parse_config(CompareConfig, DEFAULT, description=__doc__)
    page = Page.find(config.page, config.name)
    layers = Layers(config)
    plans, evaluations = layers.check()
    accelerator, run = begin(config, one_process=True, same_settings=False)
    jobs = Jobs(config, layers, run)
    told = estimate(plans, evaluations, jobs, accelerator)
    run.start()
    jobs.start(told)
    sets = jobs.make_sets(plans)
    scored = jobs.score(sets)
    tables = {title: join_scores(found) for title, found in scored.items()}
    seconds = time.perf_counter() - started
    block = render(tables, jobs.failures)
    run.write_json("scores.json", {"tables": tables, "failures": jobs.failures, "seconds": seconds})
    (run.path / "table.md").write_text(block, encoding="utf-8")
    if any(tables.values()):
        page.write(block)
    print(f"{block}\nIn {run.path} after {seconds:.0f} s: table.md, scores.json, sets/, evaluations/")
    accelerator.end_training()
    if jobs.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
