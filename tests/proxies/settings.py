"""The reference site's settings behind a proxy that ends TLS, for a web process beside those of a stack."""

import os

os.environ["TLS_PROXY"] = "1"

from project.settings import *  # noqa: F403
