"""The reference site's settings, with clients that come back soon, so that a test sees many closes in little time."""

from project.settings import *  # noqa: F403
from project.settings import DELIVERY as SHIPPED

DELIVERY = {**SHIPPED, "RETRY_INITIAL": 0.02, "RETRY_MAX": 0.05}
