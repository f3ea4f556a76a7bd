"""System checks: `delivery.E...` for errors, `delivery.W...` for likely surprises. Ids are stable.

| id   | says |
|------|------|
| E001 | DELIVERY is not a dictionary |
| E002 | an unknown setting |
| E003 | a value of the wrong type |
| E004 | a value out of its range |
| E005 | settings that contradict each other |
| E006 | the Celery app does not accept JSON |
| E007 | the Celery app does not know our queue |
| E008 | the policy cannot be used |
| E009 | the URL of Redis cannot be read |
| E010 | no channel layer |
| E011 | our tables are in several databases |
| E012 | the broker URL of the Celery app names no broker |
| E101 | a Redis elsewhere without a password |
| E102 | a Redis elsewhere without TLS |
| E103 | DEBUG is on |
| E104 | `"*"` among the hosts or Origins |
| E105 | the web server takes smaller messages than we do |
| E106 | daphne is the web server |
| E107 | the core channel layer under redis-py 8 without a timeout |
| W001 | no Celery app is configured |
| W002 | Celery is in eager mode |
| W003 | nobody consumes our queue |
| W004 | Redis does not answer |
| W005 | the web server takes smaller messages than we do |
| W006 | daphne is the web server |
| W007 | the Celery app accepts more than JSON |
| W008 | the Celery app names no broker |
| W009 | payloads lie where web servers serve files from |
| W010 | the channel layer reaches no other process |
| W011 | `delivery.urls` is not included |
| W012 | beat does not start the sweeper |
| W013 | SQLite is not set up for several processes |
| W014 | our tables are read elsewhere than written |
| W015 | users are in another database than our tables |

W003 and W004 ask running services, so they run only with `manage.py check --deploy`. E101 and above, and W007, are for
public sites and also run only with `--deploy`.

    settings.py      the values of `DELIVERY`
    celery.py        the site's Celery app, its broker and its workers
    integration.py   policy, Redis, channel layer, web server, storage, database and URLs
    deployment.py    public sites (`check --deploy`)
"""

from __future__ import annotations

from delivery.checks import celery, deployment, integration, settings

TAG = "delivery"


def register_all() -> None:
    """Register every check under the tag `delivery`."""
    for module in (settings, celery, integration, deployment):
        module.register_all(TAG)
