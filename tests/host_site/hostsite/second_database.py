"""Settings of the same site with our tables, and the users', in another database than the default. There is no default:
Django's dummy backend raises at whatever uses it.
"""

from hostsite.settings import *  # noqa: F403

DATABASES = {"default": {}, "main": DATABASES["default"]}  # noqa: F405
DATABASE_ROUTERS = ["hostsite.routers.OnlyMain"]
