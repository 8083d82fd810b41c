import re

import pytest
import timm

from ssdd_hub.errors import InputError
from ssdd_hub.hub.licences import (
    check_licence,
    derive_licence,
    describe_licence,
    is_non_commercial,
    split_licences,
    stated_licences,
)


@pytest.mark.parametrize(
    ("name", "identifiers"),
    [
        ("mit", ["mit"]),
        (" MIT,Apache-2.0 ,mit", ["mit", "apache-2.0"]),
        ("My\n  own,, licence", ["my own", "licence"]),
        ("", ["unknown"]),
        (" , ", ["unknown"]),
    ],
)
def test_a_name_is_split_into_identifiers(name: str, identifiers: list[str]) -> None:
    assert split_licences(name) == identifiers


@pytest.mark.parametrize(
    "name",
    [
        *("cc-by-nc-2.0", "CC-BY-NC-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-sa-4.0", "cc by nc", "cc_by_nc_4.0"),
        *("apple-amlr", "deepfloyd-if-license", "fair-noncommercial-research-license", "h-research", "intel-research"),
        *("seer-license", "mit-seer-license", "non-commercial", "Non Commercial use", "my_non_commercial_licence"),
        *("noncommercial", "research-only", "research only", "for research use only", "academic-research-only"),
        *("academic purposes only", "mit, cc-by-nc-4.0"),
    ],
)
def test_a_licence_that_forbids_commercial_use_is_known_by_its_name(name: str) -> None:
    assert is_non_commercial(name)


@pytest.mark.parametrize(
    "name",
    [
        *("mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nd-4.0", "gpl-3.0", "ncsa", "apple-ascl", "dinov3-license"),
        *(
            "openrail",
            "llama3.1",
            "unknown",
            "other",
            "",
            "commercial",
            "syncopated",
            "research",
            "mit, nvidia-nclsv2",
        ),
    ],
)
def test_a_licence_that_allows_commercial_use_or_does_not_say_is_not_taken_for_one_that_forbids_it(name: str) -> None:
    assert not is_non_commercial(name)


def test_the_licences_of_timms_weights_that_forbid_commercial_use_are_known() -> None:
    licences = {timm.get_pretrained_cfg(name).license or "unknown" for name in timm.list_pretrained()}
    forbidden = {"cc-by-nc-4.0", "apple-amlr", "fair-noncommercial-research-license", "seer-license"}
    assert {name for name in licences if is_non_commercial(name)} == forbidden & licences
    assert "cc-by-nc-4.0" in licences


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["mit"], "mit"),
        (["mit", "apache-2.0"], "mit, apache-2.0"),
        (["MIT", "apache-2.0, mit"], "mit, apache-2.0"),
        # The one that asks for more than a notice holds for all.
        (["mit", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["cc-by-sa-4.0", "cc-by-4.0", "CC-BY-SA-4.0"], "cc-by-sa-4.0"),
        (["gpl-3.0", "mit, bsd-3-clause"], "gpl-3.0"),
        (["ofl-1.1", "mit"], "ofl-1.1"),
        (["dinov3-license", "mit"], "dinov3-license"),
        # Two such may contradict each other.
        (["cc-by-nc-4.0", "cc-by-sa-4.0"], "unknown"),
        (["gpl-3.0", "gpl-2.0"], "unknown"),
        # What is not known may ask for anything.
        (["mit", "unknown"], "unknown"),
        (["unknown", "cc-by-nc-4.0"], "unknown"),
        (["mit", ""], "unknown"),
        (["other", "mit"], "unknown"),
        (["other"], "unknown"),
        # It forbids what is derived.
        (["cc-by-nd-4.0", "mit"], "unknown"),
        (["cc-by-nc-nd-4.0"], "unknown"),
    ],
)
def test_what_is_derived_has_the_licence_that_its_parts_leave(names: list[str], expected: str) -> None:
    assert derive_licence(*names) == expected
    if len(names) == 2:
        assert set(split_licences(derive_licence(*reversed(names)))) == set(split_licences(expected))


@pytest.mark.parametrize(
    "parts", [{"source": "mit", "teacher": "cc-by-nc-4.0"}, {"source": "cc-by-nc-4.0", "teacher": "apple-amlr"}]
)
def test_a_derived_licence_is_never_refused(parts: dict[str, str]) -> None:
    check_licence(derive_licence(*parts.values()), parts)


def test_a_licence_that_allows_what_a_part_forbids_is_refused_by_name() -> None:
    parts = {"source": "cc-by-nc-4.0", "teacher": "mit"}
    expected = (
        "the source is under cc-by-nc-4.0, which forbids commercial use, and what is derived from it cannot be "
        "published under mit: leave the licence to be derived, choose cc-by-nc-4.0, or state the permission that you "
        "have as the licence's reason"
    )
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        check_licence("mit", parts)
    with pytest.raises(InputError, match="the source is under h-research and the teacher is under Apple-AMLR, which"):
        check_licence("mit", {"source": "h-research", "teacher": "Apple-AMLR"})


@pytest.mark.parametrize("chosen", ["unknown", "Unknown", "", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "apple-amlr"])
def test_a_licence_that_allows_nothing_more_is_taken(chosen: str) -> None:
    check_licence(chosen, {"source": "cc-by-nc-4.0", "teacher": "unknown"})


@pytest.mark.parametrize("chosen", ["mit", "gpl-3.0", "other", "mit, unknown"])
def test_any_licence_is_taken_where_no_part_forbids_it_or_a_permission_is_stated(chosen: str) -> None:
    check_licence(chosen, {"source": "cc-by-sa-4.0", "teacher": "unknown"})
    check_licence(chosen, {})
    check_licence(chosen, {"source": "cc-by-nc-4.0"}, "a letter of the owner, 2024-03-01")
    for reason in (None, "", " \n", 5, True, ["a letter"]):
        with pytest.raises(InputError, match="the source is under cc-by-nc-4.0, which forbids commercial use"):
            check_licence(chosen, {"source": "cc-by-nc-4.0"}, reason)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"license": "mit"}, "mit"),
        ({"license": ["mit", "gpl"]}, "mit, gpl"),
        ({"license": "other", "license_name": "my-own"}, "my-own"),
        ({"license": ["mit", "other"], "license_name": "my-own"}, "mit, my-own"),
        ({"license": "mit", "license_name": "my-own"}, "mit"),
        ({"license": "other"}, "unknown"),
        ({"license": "other", "license_name": 5}, "unknown"),
        ({"license": 5}, "unknown"),
        ({"license": [5, None, "mit"]}, "mit"),
        ({"license": []}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_licences_that_a_card_states_are_read(header: dict[str, object], expected: str) -> None:
    assert stated_licences(header) == expected


@pytest.mark.parametrize("name", ["mit", "mit, apache-2.0", "dinov3-license", "cc-by-nc-4.0", "unknown"])
def test_what_is_described_for_the_hub_is_read_back(name: str) -> None:
    assert stated_licences(describe_licence(name)) == name
