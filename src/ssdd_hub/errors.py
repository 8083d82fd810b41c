"""The two errors of wrong input, which say what to do, and helpers that word them."""

from collections.abc import Iterable
from difflib import get_close_matches

Check = tuple[bool, str]  # a condition that must hold, and the sentence to report when it does not


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what was required, what arrived and what to do: a recipe prints it alone, without a traceback.
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
    """Raises one `SettingsError` that names every check that failed."""
    problems = [message for holds, message in checks if not holds]
    if problems:
        raise SettingsError(problems)


def nearest(value: object, known: Iterable[str]) -> str:
    """Returns the end of a message that names what a misspelt word, or each of several, may have meant.

    It is empty where nothing is near. Names that are known are in small letters.
    """
    words, names = value if isinstance(value, list | tuple) else [value], list(known)
    unknown = [word for word in words if isinstance(word, str) and word not in names]
    near = [get_close_matches(word.lower(), names, n=1, cutoff=0.5) for word in unknown]
    found = " and ".join(dict.fromkeys(match for matches in near for match in matches))
    return f"; the nearest is {found}" if found else ""
