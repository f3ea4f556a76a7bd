"""The reference site's settings, with sockets of its own and a model that keeps files."""

from project.settings import *  # noqa: F403
from project.settings import DELIVERY as SHIPPED
from project.settings import INSTALLED_APPS as SHIPPED_APPS

PLAIN_MAX_MESSAGE_BYTES = 48 * 1024 * 1024

INSTALLED_APPS = [*SHIPPED_APPS, "tests.site_sockets.shelf"]
ASGI_APPLICATION = "tests.site_sockets.asgi.application"
DELIVERY = {**SHIPPED, "PLAIN_MAX_MESSAGE": PLAIN_MAX_MESSAGE_BYTES}
