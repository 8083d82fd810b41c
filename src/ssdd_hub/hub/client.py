"""Retries, timeouts and error messages for Hub calls."""

import errno
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from huggingface_hub import HfApi, errors, get_token
from huggingface_hub.utils import get_session, httpx  # type: ignore[attr-defined]  # either of its two HTTP libraries

from ssdd_hub.errors import InputError
from ssdd_hub.text import HUB_ID, first_line, printable, redact_tokens, refuse_tokens

Result = TypeVar("Result")
Token = str | bool | None


class ClientError(Exception):
    """An error that the client raises as one of Python's own, such as a refusal of the storage."""


TIMEOUT = 60.0  # seconds without a byte
TRIES = 5
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 300.0  # seconds
_PASSING = {408, 425, 429, 500, 502, 503, 504}
# No request was made, since its address or a header is invalid.
_UNSENT = httpx.LocalProtocolError | httpx.UnsupportedProtocol | httpx.InvalidURL | UnicodeEncodeError
_DAMAGED = json.JSONDecodeError | UnicodeDecodeError
# A failed commit through Xet is a builtin `ConnectionError`.
_BROKEN = httpx.TransportError | ConnectionError | TimeoutError
# `UnicodeError`: in a damaged answer, or in a token with a letter that no header can hold.
_BUILTIN = (OSError, json.JSONDecodeError, UnicodeError)
ERRORS = (httpx.HTTPError, httpx.InvalidURL, errors.HFValidationError, ClientError, *_BUILTIN)
_HIDDEN = "there is no such repository, or it is private and not open to this token: check spelling and login"
# The first class that fits decides.
_REASONS = (
    (errors.LocalTokenNotFoundError, "there is no token: log in by `hf auth login`, or set HF_TOKEN"),
    (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE is set: unset it to reach the Hub"),
    (errors.GatedRepoError, "access is granted on request: ask for it on the repository's page, and log in"),
    (errors.RepositoryNotFoundError, _HIDDEN),
    (errors.RevisionNotFoundError, "there is no such branch, tag or commit in the repository"),
    (errors.RemoteEntryNotFoundError, "the repository lacks a file ({line})"),
    (_UNSENT, "no request can be made of it ({line}): look at the token, and at HF_ENDPOINT"),
    (_DAMAGED, "what answers is not the Hub, or its answers come damaged: look at the connection, and try again"),
    (_BROKEN, "the Hub cannot be reached ({kind}: {line}): try again"),
)
_BUSY = f"the Hub is not well (status {{status}}), also after {TRIES} tries: try again later"
_STATUSES = dict.fromkeys(_PASSING, _BUSY) | {
    0: "{line} ({kind})",
    400: "the Hub refuses it ({line})",
    401: "the Hub does not know the token, or wants one: log in by `hf auth login`, if need be with a new token",
    403: "the token does not allow it ({line}): take one with that right",
    429: "the Hub limits the rate of requests: try again in some minutes",
}


def with_retries(
    call: Callable[[], Result], tries: int = TRIES, landed: Callable[[], Result | None] = lambda: None
) -> Result:
    """Calls the Hub up to `tries` times, with growing waits, while it fails in a way that passes.

    After each failure, `landed` returns the result of a call that succeeded although its answer was lost, or None.
    The error raised is what broke the last call, also where the client raises one of Python's own because of it.
    """
    for attempt in range(1, tries + 1):
        try:
            with _limited():
                return call()
        except Exception as raised:
            error = _cause(raised)
            if isinstance(error, ERRORS) and (result := landed()) is not None:
                return result
            if attempt == tries or not is_passing(error):
                if error is raised:
                    raise
                raise error from raised
            time.sleep(wait_after(error, attempt))
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class Repo:
    """A repository on the Hub, and the token in use."""

    repo_id: str
    token: Token = None
    kind: str = "dataset"

    def call(self, method: Callable[..., Result], *args: Any, tries: int = TRIES, **how: Any) -> Result:
        """Calls a method of `HfApi` for this repository; twice at most where the client itself tries six times."""
        api = HfApi(token=self.token)
        return with_retries(lambda: method(api, self.repo_id, *args, repo_type=self.kind, **how), tries)


@contextmanager
def _limited() -> Iterator[None]:
    """Sets `TIMEOUT` on requests for which the client sets no limit."""

    # A function of its own for each block, since several threads may be inside.
    def limit(request: httpx.Request) -> None:
        limits = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {on: TIMEOUT if limit is None else limit for on, limit in limits.items()}

    hooks = get_session().event_hooks["request"]
    hooks.append(limit)
    try:
        yield
    finally:
        hooks.remove(limit)


def _cause(error: Exception) -> Exception:
    """Returns the error behind one that the client raises in its place, such as one of Python's own."""
    if isinstance(error, InputError | errors.HfHubHTTPError):
        return error
    if isinstance(error.__cause__, ERRORS):
        return error.__cause__
    if isinstance(error, RuntimeError) and "client has been closed" in str(error):
        # The connection of another thread broke, upon which the client closes its session.
        return ConnectionError(str(error))
    return error if isinstance(error, ERRORS) else ClientError(f"{error} ({type(error).__name__})")


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a little later: the connection broke, or the Hub was busy."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in _PASSING
    if isinstance(error, errors.OfflineModeIsEnabled | _UNSENT):
        return False
    # An `OSError` without a number is the client's own: a download was shorter than announced.
    return isinstance(error, _BROKEN | _DAMAGED) or (type(error) is OSError and error.errno is None)


def wait_after(error: BaseException, attempt: int) -> float:
    """Returns the seconds to wait after the failed attempt, counted from 1."""
    response = getattr(error, "response", None)
    stated = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(stated), _LONGEST_WAIT) if stated.isdecimal() else _FIRST_WAIT * 2 ** (attempt - 1)


@contextmanager
def hub_errors(doing: str, token: Token = None) -> Iterator[None]:
    """Raises errors of client, network and disk as an `InputError`: what was tried, why it failed, what to do.

    The message holds neither the `token` in use nor that of the login.
    """
    try:
        yield
    except ERRORS as error:
        message = f"{doing} failed: {_reason(error)}"
        for secret in (token, saved_token()):
            if isinstance(secret, str) and secret.strip():
                message = message.replace(secret.strip(), "<token>")
        # Without its cause, which a traceback would show with any token in it.
        raise InputError(printable(redact_tokens(message))) from None


def saved_token() -> str | None:
    """Returns the token of the login, or of HF_TOKEN; None where there is none."""
    try:
        return get_token()
    except OSError:
        return None


def _reason(error: BaseException) -> str:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; nothing half-written was left behind: make room, or choose another place"
    status, line = 0, first_line(error)
    if isinstance(error, errors.HfHubHTTPError):
        status, line = error.response.status_code, "; ".join((error.server_message or line).splitlines())
    reasons = [text for kind, text in _REASONS if isinstance(error, kind)]
    # The client takes a token that the Hub does not know for a repository that is not there.
    if not reasons or (status == 401 and "credentials" in line.lower()):
        reasons = [_STATUSES.get(status, "the Hub answers {status} ({line})")]
    return reasons[0].format(status=status, line=line, kind=type(error).__name__)


def full_id(repo_id: str, token: Token = None, reads_only: bool = False) -> str:
    """Returns `owner/name`; a name alone belongs to the user of the token, by default that of the login.

    Raises:
        InputError: The name is invalid, there is no usable token, or it may only read where something is written.
    """
    refuse_tokens({"the name of the repository": repo_id}, (token if isinstance(token, str) else None, saved_token()))
    if not (HUB_ID.fullmatch(repo_id) or re.fullmatch(r"\w[\w.-]*", repo_id, re.ASCII)):
        raise InputError(f"a repository on the Hub is named owner/name or name, got {repo_id!r}")
    if reads_only and "/" in repo_id and (token is False or not (token or saved_token())):
        return repo_id
    if token is False:
        raise InputError(f"publishing {repo_id} needs a token, and token=False says to use none: leave it out")
    with hub_errors(f"publishing {repo_id}", token):
        user = with_retries(HfApi(token=token).whoami)
    access = (user.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read" and not reads_only:
        raise InputError("the token may only read, and publishing writes: make a token with the right to write")
    return repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
