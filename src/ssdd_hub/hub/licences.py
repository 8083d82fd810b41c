"""Licences: their identifiers on the Hub, and the one of what is derived from several parts.

No legal advice: identifiers are compared, texts are not read; what an identifier does not tell is `unknown`.
"""

import re
from collections.abc import Mapping
from typing import Any

from ssdd_hub.errors import InputError

UNKNOWN = "unknown"
# They require no more than a notice: what is derived may have another licence beside them.
_PERMISSIVE = set(
    """apache-2.0 mit afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 etalab-2.0 isc ms-pl
    ncsa odc-by pddl postgresql unlicense zlib""".split()
)
# For research alone, though the name does not say "nc".
_RESEARCH = set(
    "apple-amlr deepfloyd-if-license fair-noncommercial-research-license h-research intel-research".split()
)
# That of Meta's SEER, in timm, is for "non-commercial research purposes" (facebookresearch/vissl, MODEL_LICENSE.md).
_NON_COMMERCIAL = re.compile(
    r"(^|[-_ ])(nc|non[-_ ]?commercial|(research|academic)[-_ ]((use|purposes)[-_ ])?only|seer-license)([-_ ]|$)"
)
# The identifiers of the Hub's documentation of licences; it takes others as `other` with a name.
_ON_HUB = _PERMISSIVE | _RESEARCH
_ON_HUB |= set(
    """openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m openrail++ cc
    cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr lppl-1.3c apple-ascl mpl-2.0 odbl ofl-1.1 osl-3.0 llama2 llama3
    llama3.1 llama3.2 llama3.3 gemma unknown other""".split()
)
_LINKS = {"dinov3-license": "https://ai.meta.com/resources/models-and-libraries/dinov3-license"}


def describe_licence(name: str) -> dict[str, Any]:
    """Returns a licence, or several joined by commas, as the Hub's YAML: known identifiers, or `other` with a name."""
    identifiers = split_licences(name)
    if all(part in _ON_HUB for part in identifiers):
        return {"license": identifiers if len(identifiers) > 1 else identifiers[0]}
    identifier = ", ".join(identifiers)
    slug = re.sub(r"[^a-z0-9.]+", "-", identifier).strip("-.") or "unnamed"
    link = {"license_link": _LINKS[identifier]} if identifier in _LINKS else {}
    return {"license": "other", "license_name": slug, **link}


def stated_licences(header: Mapping[str, Any]) -> str:
    """Returns the licences that a card's YAML states, joined by commas; `other` counts as the name given to it."""
    names = header.get("license")
    names = names if isinstance(names, list) else [names]
    names = [header.get("license_name") if name == "other" else name for name in names]
    return ", ".join(name for name in names if isinstance(name, str)) or UNKNOWN


def split_licences(name: str) -> list[str]:
    """Returns the identifiers of one licence, or of several joined by commas, in lower case."""
    parts = [" ".join(part.split()).lower() for part in name.split(",")]
    return list(dict.fromkeys(filter(None, parts))) or [UNKNOWN]


def is_non_commercial(name: str) -> bool:
    """Whether one of the licences forbids commercial use, as its name states."""
    return any(part in _RESEARCH or _NON_COMMERCIAL.search(part) for part in split_licences(name))


def derive_licence(*names: str) -> str:
    """Returns the licence of what is derived from parts with these licences, each one or several joined by commas.

    All of them, if none requires more than a notice; the one that does, if it is the only one, since the others are
    met by naming the parts; otherwise `unknown`, since two such licences may contradict each other. It is `unknown`
    too if that one forbids derived works (`nd`).
    """
    parts = list(dict.fromkeys(part for name in names for part in split_licences(name)))
    demanding = [part for part in parts if part not in _PERMISSIVE]
    if not demanding:
        return ", ".join(parts)
    known = demanding[0] not in (UNKNOWN, "other") and "nd" not in demanding[0].split("-")
    return demanding[0] if len(demanding) == 1 and known else UNKNOWN


def check_licence(chosen: str, parts: Mapping[str, str], reason: Any = None) -> None:
    """Refuses a licence that allows commercial use of what is derived from a part that forbids it.

    `parts` has the licence of each part by its name; `reason`, if it is text, is a permission that you have.

    Raises:
        InputError: It is so, and no reason is given.
    """
    strict = {name: licence for name, licence in parts.items() if is_non_commercial(licence)}
    free = split_licences(chosen) != [UNKNOWN] and not is_non_commercial(chosen)
    given = isinstance(reason, str) and reason.strip()
    if strict and free and not given:
        listed = " and ".join(f"the {name} is under {licence}" for name, licence in strict.items())
        raise InputError(
            f"{listed}, which forbids commercial use, and what is derived from it cannot be published under {chosen}: "
            f"leave the licence to be derived, choose {next(iter(strict.values()))}, or state the permission that you "
            "have as the licence's reason"
        )
