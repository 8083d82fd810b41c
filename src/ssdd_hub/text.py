"""Helpers for untrusted text: Hub ids, redaction of access tokens, removal of control characters."""

import re
from typing import Any

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
# Also right after a letter, as in an address: `token%3Dhf_...`.
_HUB_TOKEN = re.compile(r"(?:hf|api_org)_(?:oauth_|jwt_)?[A-Za-z0-9]{16,}[\w.-]*")
# No word of a sentence has a digit or an underscore.
_BEARER = re.compile(r"(?i)\b(bearer\s+)(?=[^\s'\",}]*[0-9_])[^\s'\",}]+")

_SHOWN = 60  # letters of a value in a message


def redact_tokens(text: str) -> str:
    """Returns text with each access token of the Hub replaced by `<token>`."""
    return _BEARER.sub(r"\1<token>", _HUB_TOKEN.sub("<token>", text))


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message that is not empty, else the error's type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def printable(text: str) -> str:
    """Returns text without control characters, which could steer a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)


def show(value: Any) -> str:
    """Returns an untrusted value for a message: short, without tokens and without what steers a terminal."""
    try:
        text = redact_tokens(repr(value))
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
