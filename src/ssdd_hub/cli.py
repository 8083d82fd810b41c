"""`ssdd-hub`: make, score and publish distilled sets, by the recipes; push, pull, list, show, view and check them.

Nothing heavy is imported here, so that help and completion answer at once; each command imports what it needs.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdd_hub.errors import InputError
from ssdd_hub.procedures import RECIPES, recipe_options, run_recipe
from ssdd_hub.text import HUB_ID, printable, redact_tokens, refuse_tokens, tell_bytes

if TYPE_CHECKING:
    from ssdd_hub.hub.upload import Published
    from ssdd_hub.sets.check import Finding
    from ssdd_hub.sets.publish import CardOverrides

TAG = "ssdd_hub"
"""The tag of the cards of all sets, by which the Hub finds them."""
_HUBS_OWN = ".gitattributes"
_RUNNABLE = {".dll", ".exe", ".ipynb", ".py", ".pyc", ".sh", ".so"}
_LONGEST_CELL = 80  # letters of a table's cell


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 1 when `check` found errors, 2 for a mistake in the input."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in RECIPES:
            return run_recipe(words[0], words[1:])
        arguments = _build_parser().parse_args(words)
        return int(arguments.run(arguments) or 0)
    except InputError as error:
        sys.stderr.write(f"error: {printable(redact_tokens(str(error)))}\n")
        return 2
    except OSError as error:
        # Others than the system's own have no number, and are faults of ours.
        if error.errno is None:
            raise
        place = "" if error.filename is None else f", {error.filename}"
        sys.stderr.write(
            f"error: the system refused it ({printable(f'{error.strerror}{place}')}): choose another place\n"
        )
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; nothing was left half-written\n")
        return 130


def _build_parser(options: Callable[[str], Sequence[str]] = lambda name: ()) -> argparse.ArgumentParser:
    """Returns the parser; `options` are those of a recipe, which only completion needs here."""
    # Arguments of several commands.
    revision = argparse.ArgumentParser(add_help=False)
    revision.add_argument("--revision", help="branch, tag or sha; main by default")
    stated = argparse.ArgumentParser(add_help=False)
    stated.add_argument("folder", help="such as runs/digits/distilled")
    stated.add_argument("--license", help="by default derived from those of source and teacher")
    stated.add_argument("--license-reason", help="the permission by which it may be more permissive than those")
    stated.add_argument("--teacher", help="the teacher's repository on the Hub, for the card")
    stated.add_argument("--scores", type=Path, help="a scores.json whose records, and recipe of use, the card shows")

    parser = argparse.ArgumentParser("ssdd-hub", description=(__doc__ or "").partition("\n")[0])
    version = vars(sys.modules["ssdd_hub"])["__version__"]
    parser.add_argument("--version", action="version", version=f"ssdd-hub {version}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def _add(name: str, run: Callable[..., int | None], text: str, *shared: argparse.ArgumentParser) -> Any:
        command = commands.add_parser(name, help=text, parents=shared)
        command.set_defaults(run=run)
        return command.add_argument

    for name, recipe in RECIPES.items():
        # Their options are those of the recipe, which `main` hands them to.
        command = commands.add_parser(name, help=recipe.text, add_help=False)
        for option in options(name):
            command.add_argument(option)
    push = _add("push", _push, "publish the folder of a set: one commit, verified, tagged", stated)
    push("repo", help="owner/name, or a name in your own namespace")
    push("--dry-run", action="store_true", help="show what would be sent and where, and stop")
    push("--private", action="store_true", help="a repository made here is private")
    push("--revision", help="a branch, made if it is not there; main by default")
    push("--create-pr", action="store_true", help="offer the set as a pull request")
    push("--tag", help="by default set- and eight digits made of the contents; '' for none")
    push("--message", help="the commit's title")
    card = _add("card", _card, "render the card of a folder again, with what is stated besides", stated)
    card("--location", help="what the card's code loads; by default this folder, from inside it")
    pull = _add("pull", _pull, "fetch a set into a folder of its own, checked", revision)
    pull("repo", help="owner/name")
    pull("folder", nargs="?", help="the place; by default the name of the set")
    listing = _add("list", _list, "list sets on the Hub")
    listing("--author", help="of this user or organisation")
    listing("--search", help="with this in their names")
    listing("--limit", type=_count, default=50, help="so many at most (%(default)s)")
    view = _add("view", _view, "write the gallery of a set: its images, targets and scores, one HTML page", revision)
    view("--output", type=Path, help="by default gallery.html, in the run folder or here")
    view("--space", type=Path, help="write a static Space of the Hub into this folder as well")
    show = _add("show", _show, "tell what a set is, how it was made and what it scored", revision)
    check_text = "look for mistakes in a set, a teacher or a run: files, record, data, card, licence"
    view("place", help="a set, or the folder of a run that holds one, or owner/name")
    for command in (show, _add("check", _check, check_text, revision)):
        command("place", help="a folder, or owner/name")
    completion = _add("completion", _completion, "print a script by which the tab key completes words and options")
    completion("shell", choices=("bash", "zsh", "tcsh"), help="the shell that is to read it")
    _add("methods", _methods, "list methods, parameterisations and objectives: papers, settings, status")
    return parser


def _read_statements(arguments: argparse.Namespace) -> "CardOverrides":
    from ssdd_hub.sets.publish import CardOverrides

    teacher = arguments.teacher
    if teacher is not None and not HUB_ID.fullmatch(teacher):
        raise InputError(f"--teacher must be the teacher's repository on the Hub, owner/name; got {teacher!r}")
    scores = {} if arguments.scores is None else read_scores(arguments.scores)
    return CardOverrides(arguments.license, arguments.license_reason, teacher, **scores)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _say(*lines: str) -> None:
    """Prints lines, also where the terminal's encoding lacks one of their letters."""
    text, encoding = "".join(f"{printable(line)}\n" for line in lines), sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _folder_of(arguments: argparse.Namespace) -> Path | None:
    """Returns the folder that `place` names; None for a repository."""
    place = Path(arguments.place)
    if place.is_dir() and arguments.revision is not None:
        raise InputError(f"{place} is a folder, which has no revision {arguments.revision!r}: leave it out")
    return place if place.is_dir() else None


def _push(arguments: argparse.Namespace) -> None:
    from ssdd_hub.hub.upload import upload
    from ssdd_hub.sets.publish import MESSAGE, plan_set

    given = {name: getattr(arguments, name) for name in ("private", "revision", "create_pr", "tag", "dry_run")}
    plan = plan_set(arguments.folder, arguments.repo, additions=_read_statements(arguments), **given)
    _say(plan.describe())
    if arguments.dry_run:
        _say("nothing was sent")
    else:
        _say(*describe_published(upload(plan, arguments.message or MESSAGE), Path(arguments.folder)))


def _card(arguments: argparse.Namespace) -> None:
    from ssdd_hub.sets.publish import rerender_card

    rerender_card(arguments.folder, _read_statements(arguments), arguments.location)
    _say(f"the card of {arguments.folder} is rendered again")


def read_scores(path: Path) -> dict[str, Any]:
    """Reads what the card of a set shows of a `scores.json`.

    Returns:
        `scores`, the records; and `use`, how students were pre-trained on the sets, where the file states it.

    Raises:
        InputError: It is no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        records, use = found["records"], found.get("use")
        # Python reads NaN, which JSON, and thus the record, cannot hold.
        json.dumps([records, use], ensure_ascii=False, allow_nan=False).encode()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as scores.json ({error!r}): give the one of an evaluation") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(f"{path} must hold a list of objects as records: give the scores.json of an evaluation")
    if use is None:
        return {"scores": records}
    if not isinstance(use, dict):
        raise InputError(f"{path} must hold an object as use: give the scores.json of an evaluation")
    from ssdd_hub.statements import check_use

    check_use(use)
    return {"scores": records, "use": use}


def describe_published(published: "Published", folder: Path) -> list[str]:
    """Returns lines that tell where a folder was published, and the code that loads it."""
    from ssdd_hub.record import read_metadata

    tensors = read_metadata(folder)["tensors"]
    place = f'"{published.repo_id}", revision="{published.revision}"'
    return [
        f"published and verified: {published.url}",
        *(f"  {name} sha256 {entry['sha256']}" for name, entry in tensors.items() if name not in ("labels", "views")),
        "load it by",
        f"  ssdd_hub.DistilledSet.from_pretrained({place})",
        f'  datasets.load_dataset({place}, split="train")',
    ]


def _pull(arguments: argparse.Namespace) -> None:
    from ssdd_hub.hub.download import pull_set
    from ssdd_hub.sets.check import verify_folder

    folder = arguments.folder or arguments.repo.rpartition("/")[2]
    commit = pull_set(arguments.repo, folder, verify_folder, arguments.revision)
    _say(f"{arguments.repo} at commit {commit}, verified, is in {folder}")


def _list(arguments: argparse.Namespace) -> None:
    from huggingface_hub import HfApi

    from ssdd_hub.hub.client import hub_errors, saved_token, with_retries

    given = {"author": arguments.author, "search": arguments.search, "limit": arguments.limit}
    refuse_tokens({"--author": arguments.author, "--search": arguments.search}, [saved_token()])
    with hub_errors("listing sets"):
        # The client itself tries a listing again, five times.
        found = with_retries(lambda: list(HfApi().list_datasets(filter=TAG, **given)), tries=2)
    if not found:
        _say("no sets were found")
    width = max((len(entry.id) for entry in found), default=0)
    for entry in found:
        date = f"{entry.last_modified:%Y-%m-%d}" if entry.last_modified else ""
        _say(f"{entry.id:<{width}}  {date}{'  private' if entry.private else ''}".rstrip())


def _show(arguments: argparse.Namespace) -> None:
    from ssdd_hub.hub.download import fetch_record
    from ssdd_hub.record import read_metadata

    folder = _folder_of(arguments)
    run = _run_of(folder) if folder else None
    place = run / "distilled" if run else folder or fetch_record(arguments.place, arguments.revision)
    _say(*describe_set(read_metadata(place)))


def describe_set(metadata: Mapping[str, Any]) -> list[str]:
    """Returns what a set's record states, in lines; any part of it may be missing or malformed."""
    from ssdd_hub.hub.markdown import plain
    from ssdd_hub.record import section
    from ssdd_hub.record_schema import STORED
    from ssdd_hub.results.tables import score_table

    provenance = section(metadata, "provenance")
    tensors = section(metadata, "tensors")
    facts = {name: plain(section(tensors, name).get("shape")) for name in STORED}
    facts |= {name: plain(metadata.get(name)) for name in ("pixel_space", "pixel_range")}
    facts["num_bytes"] = tell_bytes(section(metadata, "num_bytes"))
    # What they are, beside their shape; of a teacher's nothing is stated.
    facts["targets"] = "; ".join(part for part in (facts["targets"], plain(provenance.get("targets"))) if part)
    names = ("method", "license", "source", "teacher", "student", "use", "seconds", "hardware", "command")
    facts |= {name: plain(provenance.get(name)) for name in names}
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {fact}" for name, fact in facts.items() if fact]
    try:
        scores = [{key: _cell(value) for key, value in record.items()} for record in provenance.get("scores") or []]
        return [*lines, *score_table(scores).splitlines()]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return [*lines, "the scores cannot be read"]


def _view(arguments: argparse.Namespace) -> None:
    # Imported here, since the other commands need no pictures.
    from ssdd_hub.sets.distilled import DistilledSet
    from ssdd_hub.sets.gallery import read_starts, render_gallery, write_space

    folder = _folder_of(arguments)
    run = _run_of(folder) if folder else None
    distilled = DistilledSet.from_pretrained(
        run / "distilled" if run else folder or arguments.place, arguments.revision
    )
    name = (run or folder.resolve()).name if folder else arguments.place
    title = f"{name}: {len(distilled.images)} images"
    page = arguments.output or (run or Path()) / "gallery.html"
    render_gallery(distilled, page, title, read_starts(run, distilled.images) if run else None)
    _say(f"the gallery is {page}: open it in a browser")
    if arguments.space:
        write_space(distilled, arguments.space, title)
        _say(f"a static Space is in {arguments.space}: hf upload OWNER/NAME {arguments.space} --repo-type space")


def _run_of(folder: Path) -> Path | None:
    """Returns the run folder that a folder is, or whose set it is; None for others."""
    folder = folder.resolve()
    run = folder.parent if folder.name == "distilled" else folder
    return run if (run / "config.yaml").is_file() and (run / "distilled").is_dir() else None


def _cell(value: Any) -> Any:
    from ssdd_hub.hub.markdown import plain

    return plain(value)[:_LONGEST_CELL] if isinstance(value, str) else value


def _check(arguments: argparse.Namespace) -> int:
    from ssdd_hub.sets.check_places import check_place

    folder = _folder_of(arguments)
    found = check_place(folder) if folder else _check_remote(arguments.place, arguments.revision)
    _say(*map(str, found))
    errors = sum(finding.level == "error" for finding in found)
    _say(f"{arguments.place}: {errors} error(s), {len(found) - errors} warning(s)")
    return int(errors > 0)


def _check_remote(repo_id: str, revision: str | None) -> list["Finding"]:
    from ssdd_hub.hub.download import is_set_file, list_files, pull_set
    from ssdd_hub.sets.check import check_folder

    with tempfile.TemporaryDirectory(prefix="ssdd-hub-check-") as scratch:
        folder = Path(scratch, "set")
        commit = pull_set(repo_id, folder, lambda fetched: None, revision)
        found = check_folder(folder)
    others = [name for name in list_files(repo_id, commit) if name != _HUBS_OWN and not is_set_file(name)]
    return sorted([*found, *map(_judge_other, others)])


def _judge_other(name: str) -> "Finding":
    """Judges a file that is no part of the set, and was not fetched."""
    from ssdd_hub.hub.download import clashes_with_set
    from ssdd_hub.sets.check import PICKLES, Finding

    if Path(name).suffix.lower() in PICKLES | _RUNNABLE:
        return Finding("error", name, "a file of this kind may run code when it is loaded; it was not fetched")
    if clashes_with_set(name):
        problem = "spoils the set: `datasets` loads it as a part, or parts of the set are not sent"
        return Finding("error", name, problem)
    return Finding("warning", name, "is no part of a distilled set; it was not fetched")


def _methods(arguments: argparse.Namespace) -> None:
    from ssdd_hub.method_list import describe_methods

    _say(*describe_methods())


def _completion(arguments: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError as error:
        raise InputError("completion needs the package shtab: pip install 'ssdd-hub[complete]'") from error

    sys.stdout.write(shtab.complete(_build_parser(recipe_options), arguments.shell) + "\n")
