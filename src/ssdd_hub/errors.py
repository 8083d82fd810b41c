"""The two errors that mean "the input is at fault, and here is what to do"."""

from collections.abc import Iterable

Check = tuple[bool, str]  # a condition that must hold, and the sentence to report when it does not


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what was required, what arrived and what to do, so that a recipe can print it alone, without a
    traceback.
    """


class SettingsError(InputError):
    """One or more settings are wrong; all of them are reported together.

    Attributes:
        problems: One sentence per wrong setting.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def require(*checks: Check) -> None:
    """Raises one error that names every check that failed.

    Args:
        *checks: Pairs of a condition that must hold and the sentence to report when it does not.

    Raises:
        SettingsError: At least one condition does not hold.
    """
    problems = [message for holds, message in checks if not holds]
    if problems:
        raise SettingsError(problems)
