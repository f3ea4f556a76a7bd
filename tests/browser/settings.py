"""The reference site with a bare page for the browser's tests, under a strict policy of what the page may load."""

from project.settings import *  # noqa: F403
from project.settings import DELIVERY as SHIPPED
from project.settings import MIDDLEWARE as SHIPPED_MIDDLEWARE

ROOT_URLCONF = "tests.browser.urls"
MIDDLEWARE = [*SHIPPED_MIDDLEWARE, "tests.browser.urls.content_security_policy"]
DELIVERY = {**SHIPPED, "POLICY": "tests.browser.policy.SmallQuotaPolicy"}
