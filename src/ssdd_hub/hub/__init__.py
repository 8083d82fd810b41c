"""Uploads to and downloads from the Hugging Face Hub, with retries and clear errors; text and licences of cards."""

from ssdd_hub.hub.client import hub_errors as hub_errors, with_retries as with_retries
from ssdd_hub.hub.download import fetch_record as fetch_record, fetch_set as fetch_set, pull_set as pull_set
from ssdd_hub.hub.licences import check_licence as check_licence, derive_licence as derive_licence
from ssdd_hub.hub.upload import Parcel as Parcel, Plan as Plan, Published as Published, plan_upload as plan_upload
