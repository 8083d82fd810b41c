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

FORBIDDING = """
cc-by-nc-2.0 CC-BY-NC-4.0 cc-by-nc-nd-3.0 cc-by-nc-sa-4.0 cc_by_nc_4.0 apple-amlr deepfloyd-if-license h-research
fair-noncommercial-research-license intel-research seer-license mit-seer-license non-commercial noncommercial
my_non_commercial_licence research-only academic-research-only
""".split()
FORBIDDING += ["cc by nc", "Non Commercial use", "research only", "for research use only", "academic purposes only"]
FORBIDDING += ["mit, cc-by-nc-4.0"]
OTHERS = """
mit cc-by-4.0 cc-by-sa-4.0 cc-by-nd-4.0 gpl-3.0 ncsa apple-ascl dinov3-license openrail llama3.1 unknown other
commercial syncopated research
""".split()
OTHERS += ["", "mit, nvidia-nclsv2"]


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
def test_a_name_is_split_into_identifiers(name, identifiers):
    assert split_licences(name) == identifiers


@pytest.mark.parametrize("name", [*FORBIDDING, *OTHERS])
def test_a_licence_that_forbids_commercial_use_is_known_by_its_name(name):
    assert is_non_commercial(name) == (name in FORBIDDING)


def test_the_licences_of_timms_weights_that_forbid_commercial_use_are_known():
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
        # The one that requires more than a notice holds for all.
        (["mit", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["cc-by-sa-4.0", "cc-by-4.0", "CC-BY-SA-4.0"], "cc-by-sa-4.0"),
        (["gpl-3.0", "mit, bsd-3-clause"], "gpl-3.0"),
        (["ofl-1.1", "mit"], "ofl-1.1"),
        (["dinov3-license", "mit"], "dinov3-license"),
        # Two such may contradict each other, what is not known may require anything, and "nd" forbids what is derived.
        *((names, "unknown") for names in (["cc-by-nc-4.0", "cc-by-sa-4.0"], ["gpl-3.0", "gpl-2.0"], ["other"])),
        *((names, "unknown") for names in (["mit", "unknown"], ["unknown", "cc-by-nc-4.0"], ["mit", ""])),
        *((names, "unknown") for names in (["other", "mit"], ["cc-by-nd-4.0", "mit"], ["cc-by-nc-nd-4.0"])),
    ],
)
def test_what_is_derived_has_the_licence_that_its_parts_leave(names, expected):
    assert derive_licence(*names) == expected
    assert set(split_licences(derive_licence(*reversed(names)))) == set(split_licences(expected))
    check_licence(derive_licence(*names), {f"part {number}": name for number, name in enumerate(names)})


def test_a_licence_that_allows_what_a_part_forbids_is_refused_by_name():
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
def test_a_licence_that_allows_nothing_more_is_taken(chosen):
    check_licence(chosen, {"source": "cc-by-nc-4.0", "teacher": "unknown"})


@pytest.mark.parametrize("chosen", ["mit", "gpl-3.0", "other", "mit, unknown"])
def test_any_licence_is_taken_where_no_part_forbids_it_or_a_permission_is_stated(chosen):
    check_licence(chosen, {"source": "cc-by-sa-4.0", "teacher": "unknown"})
    check_licence(chosen, {})
    check_licence(chosen, {"source": "cc-by-nc-4.0"}, "a letter of the owner, 2024-03-01")
    for reason in (None, "", " \n", 5, True, ["a letter"]):
        with pytest.raises(InputError, match="the source is under cc-by-nc-4.0, which forbids commercial use"):
            check_licence(chosen, {"source": "cc-by-nc-4.0"}, reason)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        *((describe_licence(name), name) for name in ("mit", "mit, apache-2.0", "dinov3-license", "unknown")),
        ({"license": ["mit", "gpl"]}, "mit, gpl"),
        ({"license": "other", "license_name": "my-own"}, "my-own"),
        ({"license": ["mit", "other"], "license_name": "my-own"}, "mit, my-own"),
        ({"license": "mit", "license_name": "my-own"}, "mit"),
        ({"license": "other", "license_name": 5}, "unknown"),
        ({"license": [5, None, "mit"]}, "mit"),
        *((header, "unknown") for header in ({"license": "other"}, {"license": 5}, {"license": []}, {})),
    ],
)
def test_the_licences_that_a_card_states_are_read(header, expected):
    assert stated_licences(header) == expected
