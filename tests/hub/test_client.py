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
)
from huggingface_hub.utils import get_session, httpx

from ssdd_hub.errors import InputError
from ssdd_hub.hub.client import ClientError, explained, guarded, is_passing, patiently, wait_after
from ssdd_hub.text import blot_tokens, printable

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"


def answered(status, **headers):
    """Returns the error of an answer with that status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx.Response(status, headers=named, request=httpx.Request("GET", "https://hub.invalid/x"))
    return HfHubHTTPError(f"{status} of the Hub", response=response)


def caused(error, cause):
    error.__cause__ = cause
    return error


NOT_JSON = json.JSONDecodeError("Expecting value", "<html>", 0)
NO_HEADER = UnicodeEncodeError("ascii", f"Bearer {TOKEN}\u00e9", 40, 41, "ordinal not in range(128)")
PASSING = [
    *(answered(status) for status in (408, 425, 429, 500, 502, 503, 504)),
    httpx.ConnectError("refused"),
    httpx.ReadError("reset"),
    httpx.ReadTimeout("silent"),
    httpx.RemoteProtocolError("closed"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    TimeoutError(),
    NOT_JSON,
]
LASTING = [
    *(answered(status) for status in (400, 401, 403, 404, 409, 412, 413, 416)),
    OfflineModeIsEnabled("offline"),
    HFValidationError("no name"),
    LocalEntryNotFoundError("not in the cache"),
    httpx.LocalProtocolError("Illegal header value"),
    httpx.UnsupportedProtocol("Request URL is missing an 'http://' or 'https://' protocol."),
    OSError(errno.ENOSPC, "No space left on device"),
    PermissionError(errno.EACCES, "Permission denied"),
    NO_HEADER,
    ClientError("something else"),
    InputError("something that the user gave"),
]


def named(error):
    return f"{type(error).__name__} {error}"[:40]


# Patience


@pytest.mark.parametrize("error", PASSING, ids=named)
def test_what_passes_is_tried_again_and_the_wait_doubles(waits, error):
    errors = [error] * 4

    def call():
        if errors:
            raise errors.pop()
        return "done"

    assert is_passing(error) and patiently(call) == "done"
    assert waits == [1, 2, 4, 8]


@pytest.mark.parametrize("error", LASTING, ids=named)
def test_what_lasts_is_raised_at_once(waits, error):
    def call():
        calls.append(1)
        raise error

    calls = []
    with pytest.raises(type(error)) as caught:
        patiently(call)
    assert not is_passing(error) and caught.value is error and len(calls) == 1 and waits == []


@pytest.mark.parametrize("tries", [1, 3])
def test_patience_has_an_end(waits, tries):
    def call():
        calls.append(1)
        raise answered(503)

    calls = []
    with pytest.raises(HfHubHTTPError, match="503 of the Hub"):
        patiently(call, tries)
    assert len(calls) == tries and waits == [1, 2][: tries - 1]


def test_an_interruption_is_not_waited_out(waits):
    def call():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patiently(call)
    assert waits == []


@pytest.mark.parametrize(
    ("stated", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("300", 300),
        ("86400", 300),
        ("9" * 400, 300),
        # A date, and what is none of both: as if nothing were stated, after the third attempt.
        ("Wed, 21 Oct 2026 07:28:00 GMT", 4),
        ("-7", 4),
        ("1.5", 4),
        ("\u00b2", 4),
        ("", 4),
    ],
)
def test_the_wait_is_what_the_hub_states_and_no_more_than_five_minutes(stated, seconds):
    headers = httpx.Headers([(b"Retry-After", stated.encode("latin-1"))])
    response = httpx.Response(429, headers=headers, request=httpx.Request("GET", "https://hub.invalid/x"))
    assert wait_after(HfHubHTTPError("busy", response=response), 3) == seconds


# Silence


def test_a_silent_hub_is_given_up_whatever_limit_the_client_forgets(hub, monkeypatch):
    hub.commit("ann/set", {"a.txt": b"a"})
    monkeypatch.setattr("ssdd_hub.hub.client.TIMEOUT", 0.2)
    api = HfApi(token="hf_ann")
    calls = {
        "whoami": api.whoami,
        "datasets/ann/set$": lambda: api.dataset_info("ann/set"),
        "tree/": lambda: list(api.list_repo_tree("ann/set", repo_type="dataset")),
        "refs": lambda: api.list_repo_refs("ann/set", repo_type="dataset"),
        "paths-info": lambda: api.get_paths_info("ann/set", "a.txt", repo_type="dataset"),
        "/api/datasets$": lambda: list(api.list_datasets()),
        "repos/create": lambda: api.create_repo("ann/other"),
    }
    # What is asked again within the client, such as the pages of a listing, is silent as often.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for step, call in calls.items():
        fault = Fault(step, delay=30, times=10)
        hub.faults[:] = [fault]
        with pytest.raises(httpx.TimeoutException), guarded():
            call()
            pytest.fail(step)
        assert fault.hits >= 1, step


def test_a_limit_that_is_stated_is_kept(hub, monkeypatch):
    monkeypatch.setattr("ssdd_hub.hub.client.TIMEOUT", 0.01)
    hub.faults.append(Fault("whoami", delay=0.3))
    with guarded():
        assert get_session().get(f"{hub.endpoint}/api/whoami-v2", timeout=20).status_code == 401


def test_the_client_is_left_as_it_was(hub):
    session = get_session()
    hooks, timeout = list(session.event_hooks["request"]), session.timeout

    def work():
        with guarded(), guarded():
            inside.append(len(session.event_hooks["request"]))

    inside = []
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(KeyboardInterrupt), guarded():
        raise KeyboardInterrupt
    assert min(inside) >= len(hooks) + 2
    assert session.event_hooks["request"] == hooks and session.timeout == timeout


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, LocalEntryNotFoundError])
def test_what_broke_is_raised_and_not_what_the_client_makes_of_it(kind):
    cause = answered(503)
    with pytest.raises(HfHubHTTPError) as caught, guarded():
        raise kind("Force download failed due to the above error.") from cause
    assert caught.value is cause


@pytest.mark.parametrize("error", [InputError("mine"), answered(400)])
def test_what_did_not_break_on_the_way_is_raised_as_it_is(error):
    with pytest.raises(type(error)) as caught, guarded():
        raise error from httpx.HTTPError("x")
    assert caught.value is error


@pytest.mark.parametrize("error", [RuntimeError("no"), ValueError("no"), KeyError("no"), TypeError("no")], ids=named)
def test_what_the_client_raises_of_pythons_own_errors_is_told_as_its(error):
    with pytest.raises(InputError, match=rf"^asking failed: .*no.* \({type(error).__name__}\)"), explained("asking"):
        patiently(lambda: throw(error))


def throw(error):
    raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError("Consistency check failed: file should be of size 9 but has size 8"),
        RuntimeError("Cannot send a request, as the client has been closed."),  # by another thread
    ],
    ids=named,
)
def test_what_the_client_makes_of_a_broken_connection_is_tried_again(waits, error):
    errors = [error]
    assert patiently(lambda: throw(errors.pop()) if errors else "done") == "done" and waits == [1]


# Explanations


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left"),
            "the disk is full; nothing half-written was left behind: make",
        ),
        (OSError(errno.EDQUOT, "Quota exceeded"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), r".*Permission denied: '/x' \(PermissionError\)"),
        (LocalTokenNotFoundError("no token"), "there is no token: log in by `hf auth login`, or set HF_TOKEN"),
        (OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE is set: unset it to reach the Hub"),
        (
            answered(403),
            r"the token does not allow it \(403 of the Hub\): take one with that right",
        ),
        (answered(429), "the Hub asks to wait, too much was asked of it: try again in some minutes"),
        (answered(503), r"the Hub is not well \(status 503\), also after 5 tries: try again later"),
        (answered(418), r"the Hub answers 418 \(418 of the Hub\)"),
        (httpx.ConnectError("refused\nmore"), r"the Hub cannot be reached \(ConnectError: refused\): try again"),
        (httpx.ReadTimeout(""), r"the Hub cannot be reached \(ReadTimeout: ReadTimeout\): try again"),
        (NOT_JSON, "what answers is not the Hub, or its answers come damaged: look at the connection, and try again"),
        (
            httpx.LocalProtocolError("Illegal"),
            r"no request can be made of it \(Illegal\): look at the token, and at",
        ),
        (httpx.UnsupportedProtocol("no http"), r"no request can be made of it \(no http\): look at"),
        (NO_HEADER, "no request can be made of it .*: look at the token"),
        (HFValidationError("Cannot have --"), r"Cannot have -- \(HFValidationError\)"),
    ],
    ids=lambda value: named(value) if isinstance(value, BaseException) else "",
)
def test_an_error_is_one_line_that_says_what_to_do(error, message):
    with pytest.raises(InputError, match=f"^fetching ann/set failed: {message}") as caught:
        with explained("fetching ann/set"):
            raise error
    assert "\n" not in str(caught.value)


def test_what_the_hub_says_is_one_line_without_what_steers_a_terminal():
    error = answered(400)
    error.server_message = "first\nsecond\x1b[2J\u202e"
    with pytest.raises(InputError) as caught, explained("asking"):
        raise error
    assert str(caught.value) == "asking failed: the Hub answers 400 (first; second [2J )"


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), KeyboardInterrupt(), InputError("x")])
def test_what_is_not_the_clients_is_not_explained(error):
    with pytest.raises(type(error)) as caught, explained("asking"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        httpx.LocalProtocolError(f"Illegal header value b'Bearer {TOKEN}\\n'"),
        OSError(f"the token {TOKEN}, secret-1 or saved-2 is wrong"),
        NO_HEADER,
        caused(httpx.ConnectError("refused"), ValueError("secret-1")),
        caused(httpx.ConnectError("refused"), caused(ValueError("x"), RuntimeError(f"Bearer {TOKEN}"))),
    ],
    ids=named,
)
def test_no_token_is_told_not_even_in_the_traceback(monkeypatch, error):
    given, saved = "secret-1", "saved-2"
    monkeypatch.setenv("HF_TOKEN", saved)
    with pytest.raises(InputError) as caught, explained("asking", f"{given}\n"):
        raise error
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert not any(secret in told for secret in (TOKEN, given, saved))


def test_an_error_that_holds_no_token_stays_the_cause():
    error = httpx.ConnectError("refused")
    # As some clients do, an error may lead back to itself.
    error.__cause__ = caused(ValueError("x"), error)
    with pytest.raises(InputError) as caught, explained("asking", TOKEN):
        raise error
    assert caught.value.__cause__ is error


# Text


@pytest.mark.parametrize(
    ("text", "blotted"),
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
    ],
)
def test_tokens_are_blotted_out(text, blotted):
    assert blot_tokens(text) == blotted


@pytest.mark.parametrize(
    "text",
    ["", "hf_hub_download", "hf_ann", "HF_TOKEN", "a bearer of news", "the bearer, of age", "load_hf_model(x)", "\n"],
)
def test_what_is_no_token_stays(text):
    assert blot_tokens(text) == text


def test_text_from_outside_cannot_steer_a_terminal():
    assert printable("caf\u00e9 \u732b\n") == "caf\u00e9 \u732b\n"
    assert printable("\x1b[31m\r\x07\x9b\u202e\u200b\t\x00") == " [31m       "
