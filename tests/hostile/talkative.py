"""The settings of the server under attack, for a web process that logs all it has to say."""

from project.settings import LOGGING as SHIPPED_LOGGING
from tests.hostile.settings import *  # noqa: F403

LOGGING = {**SHIPPED_LOGGING, "root": {**SHIPPED_LOGGING["root"], "level": "DEBUG"}}
