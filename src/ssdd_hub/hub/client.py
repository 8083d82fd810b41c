"""Retries, timeouts and error messages for Hub calls."""

import errno
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, httpx  # type: ignore[attr-defined]  # either of its two HTTP libraries

from ssdd_hub.errors import InputError
from ssdd_hub.text import HUB_ID, blot_tokens, printable

Result = TypeVar("Result")
Token = str | bool | None


class ClientError(Exception):
    """Something that the client raises as one of Python's own errors, such as a refusal of the storage."""


# All that the client raises; a failed commit through Xet is a builtin `ConnectionError`, a damaged answer of the API
# raises what `json` does, and a token with a letter that no header can hold a `UnicodeEncodeError`.
ERRORS = (
    *(httpx.HTTPError, httpx.InvalidURL, HFValidationError, OSError, ClientError),
    *(json.JSONDecodeError, UnicodeDecodeError, UnicodeEncodeError),
)
TIMEOUT = 60.0  # seconds without a byte
TRIES = 5
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 300.0  # seconds
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_FULL = {errno.ENOSPC, errno.EDQUOT}
# No request was made: its address or its headers are none.
_UNSENT = httpx.LocalProtocolError | httpx.UnsupportedProtocol | httpx.InvalidURL | UnicodeEncodeError
_DAMAGED = json.JSONDecodeError | UnicodeDecodeError


@contextmanager
def guarded() -> Iterator[None]:
    """Mends two habits of the client: to wait for ever, and to hide what broke an upload or a download.

    Within it a connection that is silent for `TIMEOUT` is given up, and what broke is raised as it was.
    """
    # One of its own for each call, since several threads may be at it.
    hooks, limit = get_session().event_hooks["request"], partial(_limit)
    hooks.append(limit)
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, LocalEntryNotFoundError) as error:
        found = _unwrapped(error)
        if found is error:
            raise
        raise found from error
    finally:
        hooks.remove(limit)


def _unwrapped(error: Exception) -> Exception:
    if isinstance(error, InputError | HfHubHTTPError):
        return error
    if isinstance(error.__cause__, ERRORS):
        return error.__cause__
    if isinstance(error, RuntimeError) and "client has been closed" in str(error):
        # The connection of another thread broke, upon which the client starts anew.
        return ConnectionError(str(error))
    return error if isinstance(error, ERRORS) else ClientError(f"{error} ({type(error).__name__})")


def _limit(request: httpx.Request) -> None:
    limits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {on: TIMEOUT if limit is None else limit for on, limit in limits.items()}


def patiently(call: Callable[[], Result], tries: int = TRIES) -> Result:
    """Calls the Hub, again when it fails in a way that passes, as the client does for downloads alone.

    The wait doubles from a second on; a `Retry-After` is obeyed up to five minutes. A minute of silence is a failure.

    Args:
        call: Something that may be done twice.
        tries: Calls at most.

    Raises:
        Exception: What the last call raised.
    """
    for attempt in range(1, tries + 1):
        try:
            with guarded():
                return call()
        except ERRORS as error:
            if attempt == tries or not is_passing(error):
                raise
            time.sleep(wait_after(error, attempt))
    raise AssertionError("unreachable")


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a little later: the connection broke, or the Hub was busy."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    if isinstance(error, OfflineModeIsEnabled | _UNSENT):
        return False
    # An `OSError` of no number is the client's own: a download was shorter than announced.
    cut = type(error) is OSError and error.errno is None
    return cut or isinstance(error, httpx.TransportError | ConnectionError | TimeoutError | _DAMAGED)


def wait_after(error: BaseException, attempt: int) -> float:
    """Returns the seconds to wait after the failed attempt, counted from 1."""
    response = getattr(error, "response", None)
    stated = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(stated), _LONGEST_WAIT) if stated.isdecimal() else _FIRST_WAIT * 2 ** (attempt - 1)


@contextmanager
def explained(doing: str, token: Token = None) -> Iterator[None]:
    """Turns errors of the client into one sentence that says what was tried, why it failed and what to do.

    Args:
        doing: What is tried, such as `publishing owner/name`.
        token: The token in use, which no message may hold.

    Raises:
        InputError: The block failed in the client, on the network, or on the disk.
    """
    try:
        yield
    except ERRORS as error:
        message = f"{doing} failed: {_reason(error)}"
        # A traceback would show the cause, with whatever its text holds.
        is_clean = _blot(_texts(error), token) == _texts(error)
        raise InputError(printable(_blot(message, token))) from (error if is_clean else None)


def _blot(text: str, token: Token) -> str:
    secrets = {secret.strip() for secret in (token, saved_token()) if isinstance(secret, str)} - {""}
    for secret in secrets:
        text = text.replace(secret, "<token>")
    return blot_tokens(text)


def _texts(error: BaseException | None) -> str:
    """Returns the texts of an error and of all that led to it."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return "\n".join(f"{each} {each!r}" for each in seen)


def saved_token() -> str | None:
    """Returns the token of the login, or of HF_TOKEN; None where there is none."""
    try:
        return get_token()
    except OSError:
        return None


def _reason(error: BaseException) -> str:
    if getattr(error, "errno", None) in _FULL:
        return "the disk is full; nothing half-written was left behind: make room, or choose another place"
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token: log in by `hf auth login`, or set HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to reach the Hub"
    if isinstance(error, GatedRepoError):
        return "access is granted on request: ask for it on the repository's page, and log in"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such branch, tag or commit in the repository"
    if isinstance(error, EntryNotFoundError) and isinstance(error, HfHubHTTPError):
        return f"the repository lacks a file ({_first_line(error)})"
    if isinstance(error, HfHubHTTPError):
        return _reason_of_status(error)
    if isinstance(error, _UNSENT):
        return f"no request can be made of it ({_first_line(error)}): look at the token, and at HF_ENDPOINT"
    if isinstance(error, _DAMAGED):
        return "what answers is not the Hub, or its answers come damaged: look at the connection, and try again"
    if isinstance(error, httpx.TransportError | ConnectionError | TimeoutError):
        return f"the Hub cannot be reached ({type(error).__name__}: {_first_line(error)}): try again"
    return f"{_first_line(error)} ({type(error).__name__})"


def _reason_of_status(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = "; ".join((error.server_message or _first_line(error)).splitlines())
    if status == 401 and (not isinstance(error, RepositoryNotFoundError) or "credentials" in said.lower()):
        return "the Hub does not know the token, or wants one: log in by `hf auth login`, if need be with a new token"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private and not open to this token: check spelling and login"
    if status == 403:
        return f"the token does not allow it ({said}): take one with that right"
    if status == 429:
        return "the Hub asks to wait, too much was asked of it: try again in some minutes"
    if status in _PASSING:
        return f"the Hub is not well (status {status}), also after {TRIES} tries: try again later"
    if isinstance(error, BadRequestError):
        return f"the Hub refuses it ({said})"
    return f"the Hub answers {status} ({said})"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def full_id(repo_id: str, token: Token = None, reads_only: bool = False) -> str:
    """Returns `owner/name`: a name alone belongs to the user of the token. Asks the Hub who that is.

    Args:
        repo_id: `owner/name` or `name`.
        token: A Hub token; by default the one of the login.
        reads_only: Whether nothing will be written: `owner/name` then needs no token.

    Raises:
        InputError: The name is none, there is no usable token, or it may only read and something is to be written.
    """
    if not (HUB_ID.fullmatch(repo_id) or re.fullmatch(r"\w[\w.-]*", repo_id, re.ASCII)):
        raise InputError(f"a repository on the Hub is named owner/name or name, got {repo_id!r}")
    if reads_only and token is False and "/" in repo_id:
        return repo_id
    if token is False:
        raise InputError(f"publishing {repo_id} needs a token, and token=False says to use none: leave it out")
    api = HfApi(token=token)
    try:
        with explained(f"publishing {repo_id}", token):
            user = patiently(api.whoami)
    except InputError as error:
        if reads_only and "/" in repo_id and isinstance(error.__cause__, LocalTokenNotFoundError):
            return repo_id
        raise
    access = (user.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read" and not reads_only:
        raise InputError("the token may only read, and publishing writes: make a token with the right to write")
    return repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
