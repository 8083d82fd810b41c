"""An access token reaches neither the Hub nor a file, by whatever text it comes."""

import re

import pytest
import torch
from test_distilled import make_set
from test_publish import REPO, WRITES, push

from ssdd_hub.cli import main
from ssdd_hub.errors import InputError
from ssdd_hub.hub.upload import Parcel, pack, plan_upload
from ssdd_hub.record import read_metadata
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.publish import CardOverrides, rerender_card
from ssdd_hub.sets.release import collect
from ssdd_hub.settings import parse_config
from ssdd_hub.text import redact_tokens, refuse_tokens

TOKEN = "hf_" + "abcdefgh" * 4
# Of no form that is known: only whoever is logged in by it knows it for a token.
OTHER = "enterprise-secret-0123"
LEAKS = {
    "message": {"message": f"publish with {TOKEN}"},
    "tag": {"tag": TOKEN},
    "branch": {"revision": TOKEN},
    "licence": {"additions": CardOverrides(license=TOKEN)},
    "reason": {"additions": CardOverrides(license="mit", license_reason=f"mail of ann, {TOKEN}")},
    "teacher": {"additions": CardOverrides(teacher=f"ann/{TOKEN}")},
    "score": {"additions": CardOverrides(scores=[{"set": TOKEN, "mean": 0.5}])},
    "repository": {"repo_id": f"ann/{TOKEN}"},
}


ELSEWHERE = ["AKIA" + "A1" * 8, *(start + "a1" * 12 for start in ("ghp_", "github_pat_", "glpat-", "sk-proj-"))]


@pytest.fixture
def folder(tmp_path):
    return make_set().save(tmp_path / "set")


def refused(hub, call, *given, **how):
    hub.requests.clear()
    with pytest.raises(InputError, match="holds (your|what looks like an) access token") as caught:
        call(*given, **how)
    assert not hub.asked(WRITES)
    assert TOKEN not in str(caught.value) and OTHER not in str(caught.value)


@pytest.mark.parametrize("name", LEAKS)
def test_no_text_of_a_publication_holds_a_token(hub, folder, name):
    refused(hub, push, folder, **LEAKS[name])


@pytest.mark.parametrize("name", ["message", "tag", "revision"])
def test_the_token_in_use_is_known_whatever_its_form(hub, folder, name):
    hub.add_user("ann", OTHER)
    refused(hub, push, folder, token=OTHER, **{name: f"v-{OTHER}"})


@pytest.mark.parametrize(
    "words",
    [["--message", TOKEN], ["--tag", TOKEN], ["--revision", TOKEN], ["--license", "mit", "--license-reason", TOKEN]],
)
def test_the_command_refuses_it_and_shows_it_to_nobody(hub, folder, monkeypatch, capsys, words):
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    assert main(["push", str(folder), REPO, *words]) == 2
    captured = capsys.readouterr()
    assert "access token" in captured.err and TOKEN not in captured.out + captured.err
    assert not hub.asked(WRITES)


def test_names_of_files_collections_and_searches_are_looked_at(hub, folder, capsys):
    parcel = Parcel("dataset", pack({f"data/{TOKEN}.txt": b"x"}), bool, "x")
    refused(hub, plan_upload, parcel, REPO, token="hf_ann")
    refused(hub, collect, f"Sets {TOKEN}", {REPO: "dataset"}, "ann")
    assert main(["list", "--search", TOKEN]) == 2 and TOKEN not in capsys.readouterr().err


def test_cards_and_records_of_a_folder_are_looked_at(hub, folder, tmp_path):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused(hub, rerender_card, folder, CardOverrides(), f"ann/{TOKEN}")
    refused(hub, rerender_card, folder, CardOverrides(license_reason=TOKEN, license="mit"))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    refused(hub, make_set().save, tmp_path / TOKEN)
    named = make_set(labels=torch.zeros(5, dtype=torch.int64), label_names=[f"cat {TOKEN}"])
    refused(hub, named.save, tmp_path / "named")
    refused(hub, make_set(provenance={"note": {TOKEN: 1}}).save, tmp_path / "keyed")
    assert {path.name for path in tmp_path.iterdir()} <= {"set", "hub", "home"}
    # Texts of the provenance are redacted, as ever.
    saved = make_set(provenance={"command": f"HF_TOKEN={TOKEN} accelerate launch"}).save(tmp_path / "redacted")
    assert read_metadata(saved)["provenance"]["command"] == "HF_TOKEN=<token> accelerate launch"
    assert TOKEN not in (saved / "README.md").read_text() and isinstance(DistilledSet.load(saved), DistilledSet)


@pytest.mark.parametrize(
    "words",
    [
        ["--data.name", f"https://user:{TOKEN}@host/x"],
        ["--run.trackers", f"tensorboard,{TOKEN}"],
        ["--output", f"runs/{TOKEN}"],
        ["--student.model-args.norm", TOKEN],
        [f"--student.model-args.{TOKEN}", "1"],
    ],
)
def test_settings_of_a_run_which_are_stored_and_told_to_trackers_hold_none(words, monkeypatch):
    monkeypatch.syspath_prepend("recipes")
    from distill import DistillConfig

    with pytest.raises(InputError) as caught:
        parse_config(DistillConfig, None, words)
    assert re.search(
        "holds what looks like an access token|short word|must be a word|must be some of", str(caught.value)
    )
    assert TOKEN not in str(caught.value) or words[0] == f"--student.model-args.{TOKEN}"


@pytest.mark.parametrize("token", ELSEWHERE)
def test_tokens_of_other_services_are_known(token):
    with pytest.raises(InputError, match="holds what looks like an access token"):
        refuse_tokens({"a": f"x={token}"})
    assert redact_tokens(f"export KEY={token};") == "export KEY=<token>;"


def test_the_password_of_an_address_is_known_whatever_it_is(tmp_path):
    made = make_set(provenance={"command": "git clone https://ann:pass-w0rd@host/x", "a": "ssh://git@host/x:y@z"})
    command = read_metadata(made.save(tmp_path / "set"))["provenance"]
    assert command == {**command, "command": "git clone https://ann:<token>@host/x", "a": "ssh://git@host/x:y@z"}
    with pytest.raises(InputError, match="holds what looks like an access token"):
        refuse_tokens({"a": "https://:secret@host"})


def test_words_that_only_look_alike_are_taken():
    texts = {
        "a": "hf_hub",
        "b": "hf-hub:ann/teacher",
        "c": None,
        "d": "a bearer of news",
        "e": "x",
        "f": "http://[::1]:80/@a",
    }
    refuse_tokens(texts, [None, "", "x"])
