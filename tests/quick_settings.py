"""The reference site's settings, with times and limits that a test can wait for or reach."""

from project.settings import *  # noqa: F403
from project.settings import DELIVERY as SHIPPED

HEARTBEAT_SECONDS = 0.5
MAX_PAYLOAD_BYTES = 1024 * 1024
WINDOW_BYTES = 712 * 1024
SEGMENT_BYTES = 64 * 1024

DELIVERY = {
    **SHIPPED,
    "HEARTBEAT": HEARTBEAT_SECONDS,
    "MAX_PAYLOAD": MAX_PAYLOAD_BYTES,
    "WINDOW": WINDOW_BYTES,
    "SEGMENT_SIZE": SEGMENT_BYTES,
    "POLICY": "tests.quick_policy.MutedPolicy",
}
