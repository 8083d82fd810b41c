"""Settings of the recipe that publishes a run."""

from dataclasses import dataclass, field
from typing import Any

from ssdd_hub.errors import require
from ssdd_hub.runs.folder import LaunchSettings, folder_name


@dataclass(frozen=True)
class PublishConfig:
    """What of a run is published, and where.

    Attributes:
        set: Folder of the distilled set.
        repo: Its repository on the Hub: `owner/name`, or a name in your own namespace.
        private: Whether repositories made here are private; those that are there must be so already. Beside a set
            that is private already they are so without being asked.
        revision: A branch for the set, made if it is not there; `main` when not given.
        create_pr: Offer the set as a pull request.
        tag: Tag of the set; when not given `set-` and eight digits made of its contents.
        license: Licence of the set; when not given, the one derived from those of source and teacher.
        license_reason: The permission by which that licence may be more permissive than those.
        scores: A `scores.json` whose records the card shows in place of the run's own.
        teacher: Folder of the teacher, such as `runs/NAME/teacher`, to be published as well.
        students: timm models that are pre-trained on the set and published as well, as `REPO-MODEL`; `own` is the
            network that the set was distilled with.
        student_args: Arguments of students, by the names that `students` gives them:
            `--student-args.ssdd_convnet3.widths '[32, 64]'`.
        collection: Title of a collection of all that is published.
        dry_run: Show what would be sent and where, and stop.
        run: How the process computes.
        seed: Seed of the students.
        output: The folder of the students, and of the record of what was published; `runs/NAME-published` when not
            given, after the repository.
    """

    set: str = "runs/digits/distilled"
    repo: str | None = None
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    tag: str | None = None
    license: str | None = None
    license_reason: str | None = None
    scores: str | None = None
    teacher: str | None = None
    students: list[str] = field(default_factory=list)
    student_args: dict[str, Any] = field(default_factory=dict)
    collection: str | None = None
    dry_run: bool = False
    run: LaunchSettings = field(default_factory=LaunchSettings)
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        strangers = ", ".join(name for name in self.student_args if name not in self.students)
        shapeless = ", ".join(name for name, args in self.student_args.items() if not isinstance(args, dict))
        require(
            (bool(self.repo), "repo must name the repository: --repo owner/name"),
            (not strangers, f"student_args has arguments of {strangers}, which students does not name"),
            (not shapeless, f"student_args must hold {{name: value}} for each student, and does not for {shapeless}"),
        )
        if not self.output:
            object.__setattr__(self, "output", f"runs/{folder_name(str(self.repo))}-published")
