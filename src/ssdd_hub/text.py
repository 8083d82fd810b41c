"""Helpers for text: untrusted Hub ids, redaction of access tokens, removal of control characters, sizes in words."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ssdd_hub.errors import SettingsError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
# Also right after a letter, as in an address: `token%3Dhf_...`.
_TOKEN = re.compile(
    r"(?:hf|api_org)_(?:oauth_|jwt_)?[A-Za-z0-9]{16,}[\w.-]*"
    # Those of other services, which a command or an address may hold.
    r"|(?:gh[a-z]_|github_pat_|glpat-)\w{20,}|\bsk-(?:proj-)?[A-Za-z0-9]{20,}|\bAKIA[A-Z0-9]{16}\b"
)
# The password in an address, `https://user:password@host`.
_PASSWORD = re.compile(r"(?<=://)([^\s/:@]*:)[^\s/@]+(?=@)")
# No word of a sentence has a digit or an underscore.
_BEARER = re.compile(r"(?i)\b(bearer\s+)(?=[^\s'\",}]*[0-9_])[^\s'\",}]+")
_SHORTEST_TOKEN = 8  # a shorter one could stand in any text

_SHOWN = 60  # letters of a value in a message
_UNITS = ("B", "kB", "MB", "GB", "TB")


def redact_tokens(text: str) -> str:
    """Returns text with each access token, of the Hub above all, and password of an address replaced by `<token>`."""
    return _PASSWORD.sub(r"\1<token>", _BEARER.sub(r"\1<token>", _TOKEN.sub("<token>", text)))


def refuse_tokens(texts: Mapping[str, str | None], secrets: Iterable[str | None] = ()) -> None:
    """Raises a `SettingsError` that names each text, by what it is, with an access token in it.

    All that is sent or stored passes here. `secrets` are tokens that are known, of whatever form.
    """
    known = [secret for secret in secrets if secret and len(secret) >= _SHORTEST_TOKEN]
    found = []
    for what, text in texts.items():
        is_own = any(secret in (text or "") for secret in known)
        if is_own or redact_tokens(text or "") != (text or ""):
            whose = "your" if is_own else "what looks like an"
            found.append(f"{redact_tokens(what)} holds {whose} access token: remove it, and revoke the token")
    if found:
        raise SettingsError(found)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message that is not empty, else the error's type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def printable(text: str) -> str:
    """Returns text without control characters, which could steer a terminal or turn the direction of writing."""
    return re.sub("[^\n -~]", lambda letter: letter[0] if letter[0].isprintable() else " ", text)


def show(value: Any) -> str:
    """Returns an untrusted value for a message: short, without tokens and without what steers a terminal."""
    try:
        text = redact_tokens(repr(value))
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def show_bytes(size: float) -> str:
    """Returns a number of bytes in words, in decimal units: `512 B`, `1.2 kB`, `98.4 kB`, `300 kB`, `3.1 MB`."""
    power = 0
    # What rounds to 1000 is 1 of the next unit.
    while power < len(_UNITS) - 1 and size >= 999.5 * 1000**power:
        power += 1
    value = size / 1000**power
    return f"{value:.{int(power > 0 and value < 99.95)}f} {_UNITS[power]}"


def is_size(value: Any) -> bool:
    """Whether a value of an untrusted record is a number of bytes or of images."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def tell_bytes(sizes: Mapping[str, Any]) -> str:
    """Returns the `num_bytes` of a record in words, their sum first; empty where they are not known."""
    known = {name: sizes[name] for name in ("images", "targets", "decoder") if is_size(sizes.get(name))}
    if not known:
        return ""
    parts = ", ".join(f"{name} {show_bytes(size)}" for name, size in known.items() if size)
    files = f", in files of {show_bytes(sizes['file'])}" if is_size(sizes.get("file")) else ""
    return f"{show_bytes(sum(known.values()))} ({parts}){files}"
