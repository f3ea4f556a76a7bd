"""The reference site's settings, for connections with more transfers than the shipped limits allow."""

from typing import Any

from delivery.policy import DefaultPolicy, Quota
from project.settings import *  # noqa: F403
from project.settings import DELIVERY as SHIPPED

MOST_LIVE = 800


class PatientPolicy(DefaultPolicy):
    def quota(self, user: Any) -> Quota:
        return Quota(live=100_000, in_flight=2**50)


DELIVERY = {**SHIPPED, "POLICY": "tests.server.many_settings.PatientPolicy", "MAX_LIVE_TRANSFERS": MOST_LIVE}
