"""Uploads and deliveries, resumed and whole, on uvicorn's own protocols."""

from __future__ import annotations

from tests.conformance.test_deliveries import *  # noqa: F403 - the same tests, on this folder's stack
from tests.conformance.test_resume import *  # noqa: F403
