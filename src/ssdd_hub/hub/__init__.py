"""Talks to the Hugging Face Hub: uploads and downloads folders, whatever is in them."""

from ssdd_hub.hub.client import ERRORS, explained, patiently
from ssdd_hub.hub.download import fetch_record, fetch_set, list_files, pull_set
from ssdd_hub.hub.licences import check_licence, derive_licence, describe_licence
from ssdd_hub.hub.upload import Parcel, Plan, Published, pack, plan_upload

__all__ = [
    "ERRORS",
    "Parcel",
    "Plan",
    "Published",
    "check_licence",
    "derive_licence",
    "describe_licence",
    "explained",
    "fetch_record",
    "fetch_set",
    "list_files",
    "pack",
    "patiently",
    "plan_upload",
    "pull_set",
]
