import errno
import json
import threading
import traceback

import pytest
from hub_server import Fault
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import get_session, httpx

from ssdd_hub.errors import InputError
from ssdd_hub.hub.client import ClientError, hub_errors, is_passing, wait_after, with_retries
from ssdd_hub.text import printable, redact_tokens

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
NOT_JSON = json.JSONDecodeError("Expecting value", "<html>", 0)
NO_HEADER = UnicodeEncodeError("ascii", f"Bearer {TOKEN}\u00e9", 40, 41, "ordinal not in range(128)")


def answered(status, kind=HfHubHTTPError, message=None):
    """Returns the error of an answer with that status."""
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid/x"))
    return kind(f"{status} of the Hub", response=response, server_message=message)


def failing(*errors, then="done"):
    """Returns a call that raises these errors, one each time, and then succeeds."""
    left = list(errors)

    def call():
        if left:
            raise left.pop(0)
        return then

    return call


def named(error):
    return f"{type(error).__name__} {error}"[:40]


@pytest.mark.parametrize(
    "error",
    [
        *(answered(status) for status in (408, 425, 429, 500, 502, 503, 504)),
        *(httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.ReadTimeout("silent")),
        *(httpx.RemoteProtocolError("closed"), ConnectionResetError(errno.ECONNRESET, "reset"), TimeoutError()),
        NOT_JSON,
        OSError("Consistency check failed: file should be of size 9 but has size 8"),
        RuntimeError("Cannot send a request, as the client has been closed."),  # by another thread
    ],
    ids=named,
)
def test_what_passes_is_tried_again_and_the_wait_doubles(waits, error):
    assert with_retries(failing(*[error] * 4)) == "done"
    assert waits == [1, 2, 4, 8]
    with pytest.raises((type(error), ConnectionError)):
        with_retries(failing(*[error] * 3), tries=3)
    assert waits[4:] == [1, 2]


@pytest.mark.parametrize(
    "error",
    [
        *(answered(status) for status in (400, 401, 403, 404, 409, 412, 413, 416)),
        *(OfflineModeIsEnabled("offline"), HFValidationError("no name"), LocalEntryNotFoundError("not in the cache")),
        httpx.LocalProtocolError("Illegal header value"),
        httpx.UnsupportedProtocol("Request URL is missing an 'http://' or 'https://' protocol."),
        *(OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "Permission denied")),
        *(NO_HEADER, ClientError("something else"), InputError("something that the user gave"), KeyboardInterrupt()),
    ],
    ids=named,
)
def test_what_lasts_is_raised_at_once_as_it_is(waits, error):
    with pytest.raises(type(error)) as caught:
        with_retries(failing(error))
    assert not is_passing(error) and caught.value is error and waits == []


@pytest.mark.parametrize(
    ("stated", "seconds"),
    # A date, and what is neither that nor a number: as if nothing were stated, after the third attempt.
    [
        *(("7", 7), ("0", 0), ("300", 300), ("86400", 300), ("9" * 400, 300), ("", 4)),
        *(("Wed, 21 Oct 2026 07:28:00 GMT", 4), ("-7", 4), ("1.5", 4), ("\u00b2", 4)),
    ],
)
def test_the_wait_is_what_the_hub_states_and_no_more_than_five_minutes(stated, seconds):
    error = answered(429)
    error.response.headers = httpx.Headers([(b"Retry-After", stated.encode("latin-1"))])
    assert wait_after(error, 3) == seconds


def test_what_succeeded_though_its_answer_was_lost_is_not_done_again(waits):
    answers = [None, "landed"]
    call = failing(answered(503), answered(503), then="again")
    assert with_retries(call, landed=lambda: answers.pop(0)) == "landed" and waits == [1]
    with pytest.raises(HfHubHTTPError):
        with_retries(failing(answered(503)), tries=1, landed=lambda: None)


def test_a_silent_hub_is_given_up_whatever_limit_the_client_forgets(hub, monkeypatch, waits):
    hub.commit("ann/set", {"a.txt": b"a"})
    monkeypatch.setattr("ssdd_hub.hub.client.TIMEOUT", 0.2)
    api = HfApi(token="hf_ann")
    calls = {
        "whoami": api.whoami,
        "datasets/ann/set$": lambda: api.dataset_info("ann/set"),
        "tree/": lambda: list(api.list_repo_tree("ann/set", repo_type="dataset")),
        "refs": lambda: api.list_repo_refs("ann/set", repo_type="dataset"),
        "paths-info": lambda: api.get_paths_info("ann/set", "a.txt", repo_type="dataset"),
        "repos/create": lambda: api.create_repo("ann/other"),
    }
    for step, call in calls.items():
        # The client itself asks for the pages of a listing six times.
        hub.faults[:] = [Fault(step, delay=30, times=10)]
        with pytest.raises(httpx.TimeoutException):
            with_retries(call, tries=1)
        assert hub.faults[0].hits >= 1, step


def test_a_limit_that_is_stated_is_kept_and_the_client_left_as_it_was(hub, monkeypatch):
    monkeypatch.setattr("ssdd_hub.hub.client.TIMEOUT", 0.01)
    hub.faults.append(Fault("whoami", delay=0.3, times=8))
    session = get_session()
    hooks, timeout, statuses = list(session.event_hooks["request"]), session.timeout, []

    def ask():
        answer = with_retries(lambda: session.get(f"{hub.endpoint}/api/whoami-v2", timeout=20))
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(KeyboardInterrupt):
        with_retries(failing(KeyboardInterrupt()))
    assert statuses == [401] * 8
    assert session.event_hooks["request"] == hooks and session.timeout == timeout


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, LocalEntryNotFoundError])
def test_what_broke_is_raised_and_not_what_the_client_makes_of_it(kind):
    error, cause = kind("Force download failed due to the above error."), answered(403)
    error.__cause__ = cause
    with pytest.raises(HfHubHTTPError) as caught:
        with_retries(failing(error))
    assert caught.value is cause


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError, TypeError])
def test_pythons_own_errors_are_explained_when_the_client_raises_them_and_only_then(kind):
    with pytest.raises(InputError, match=rf"^asking failed: .*no.* \({kind.__name__}\)"), hub_errors("asking"):
        with_retries(failing(kind("no")))
    for error in (kind("no"), KeyboardInterrupt(), InputError("mine")):
        with pytest.raises(type(error)) as caught, hub_errors("asking"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), "the disk is full; nothing half-written was left behind: make"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), r".*Permission denied: '/x' \(PermissionError\)"),
        (LocalTokenNotFoundError("no token"), "there is no token: log in by `hf auth login`, or set HF_TOKEN"),
        (OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE is set: unset it to reach the Hub"),
        (answered(401, RepositoryNotFoundError), "there is no such repository, or it is private and not open to this"),
        (
            answered(401, RepositoryNotFoundError, "Invalid credentials"),
            "the Hub does not know the token, or wants one",
        ),
        (answered(401), "the Hub does not know the token, or wants one: log in by `hf auth login`"),
        (answered(403), r"the token does not allow it \(403 of the Hub\): take one with that right"),
        (answered(429), "the Hub limits the rate of requests: try again in some minutes"),
        (answered(503), r"the Hub is not well \(status 503\), also after 5 tries: try again later"),
        (answered(418), r"the Hub answers 418 \(418 of the Hub\)"),
        (httpx.ConnectError("refused\nmore"), r"the Hub cannot be reached \(ConnectError: refused\): try again"),
        (httpx.ReadTimeout(""), r"the Hub cannot be reached \(ReadTimeout: ReadTimeout\): try again"),
        (NOT_JSON, "what answers is not the Hub, or its answers come damaged: look at the connection, and try again"),
        (httpx.LocalProtocolError("Illegal"), r"no request can be made of it \(Illegal\): look at the token, and at"),
        (httpx.UnsupportedProtocol("no http"), r"no request can be made of it \(no http\): look at"),
        (NO_HEADER, "no request can be made of it .*: look at the token"),
        (HFValidationError("Cannot have --"), r"Cannot have -- \(HFValidationError\)"),
    ],
    ids=lambda value: named(value) if isinstance(value, BaseException) else "",
)
def test_an_error_is_one_line_that_says_what_to_do(error, message):
    with pytest.raises(InputError, match=f"^fetching ann/set failed: {message}") as caught:
        with hub_errors("fetching ann/set"):
            raise error
    assert "\n" not in str(caught.value)


def test_what_the_hub_says_is_one_line_without_what_steers_a_terminal():
    error = answered(418, message="first\nsecond\x1b[2J\u202e {line}")
    with pytest.raises(InputError) as caught, hub_errors("asking"):
        raise error
    assert str(caught.value) == "asking failed: the Hub answers 418 (first; second [2J  {line})"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (httpx.LocalProtocolError(f"Illegal header value b'Bearer {TOKEN}\\n'"), None),
        (OSError(f"the token {TOKEN}, secret-1 or saved-2 is wrong"), None),
        (NO_HEADER, None),
        (httpx.ConnectError("refused"), ValueError("secret-1")),
    ],
    ids=named,
)
def test_no_token_is_told_not_even_in_the_traceback(monkeypatch, error, cause):
    given, saved = "secret-1", "saved-2"
    monkeypatch.setenv("HF_TOKEN", saved)
    with pytest.raises(InputError) as caught, hub_errors("asking", f"{given}\n"):
        raise error from cause
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert not any(secret in told for secret in (TOKEN, given, saved))


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"--token={TOKEN} --name x", "--token=<token> --name x"),
        (f"?token%3D{TOKEN}&x", "?token%3D<token>&x"),
        (f"HF_{TOKEN}", "HF_<token>"),
        ("hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJ-_x.abc", "<token>"),
        ("hf_jwt_eyJhbGciOiJFZERTQSJ9.eyJ-_x.abc", "<token>"),
        ("api_org_abcdefghijklmnopqrst", "<token>"),
        (f"{TOKEN}\n{TOKEN}", "<token>\n<token>"),
        ("Authorization: Bearer secret_1, x", "Authorization: Bearer <token>, x"),
        ("b'bearer 0a1b2c'", "b'bearer <token>'"),
        *((text, text) for text in ("", "hf_hub_download", "hf_ann", "HF_TOKEN", "a bearer of news", "\n")),
        *((text, text) for text in ("the bearer, of age", "load_hf_model(x)")),
    ],
)
def test_tokens_are_redacted_and_nothing_else(text, redacted):
    assert redact_tokens(text) == redacted


def test_text_from_outside_cannot_steer_a_terminal():
    assert printable("caf\u00e9 \u732b\n") == "caf\u00e9 \u732b\n"
    assert printable("\x1b[31m\r\x07\x9b\u202e\u200b\t\x00") == " [31m       "
