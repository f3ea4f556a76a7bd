"""The reference site's settings for the server under attack, with quotas that a test can reach."""

from project.settings import *  # noqa: F403
from project.settings import DELIVERY as SHIPPED

MOST_LIVE = 48

DELIVERY = {**SHIPPED, "POLICY": "tests.hostile.policy.TightPolicy", "MAX_LIVE_TRANSFERS": MOST_LIVE}
