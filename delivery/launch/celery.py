"""Running the site's own Celery app in place of the current process, so that signals reach Celery itself."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from celery import Celery
from celery.app.utils import find_app
from django.conf import settings

from delivery.conf import Settings
from delivery.errors import UsageError
from delivery.launch import environment

#: How a worker runs its tasks; the first is our default. One process costs less than three.
POOLS = ("threads", "prefork")


def default_app() -> str:
    """Return the name of the site's Celery app: the package of its settings, by Celery's convention."""
    return os.environ.get("CELERY_APP") or str(settings.SETTINGS_MODULE).partition(".")[0]


def site_app(name: str) -> Celery:
    """Return the Celery app that `name` leads to. Raises UsageError where its module has none."""
    try:
        found: Celery = find_app(name)
    except AttributeError:
        file = f"{name.partition(':')[0].replace('.', '/')}/celery.py"
        raise UsageError(
            f'there is no Celery app in {name}: make {file} with app = Celery("{name}"), as Celery\'s "First steps with '
            'Django" has it, or name yours with --app or CELERY_APP'
        ) from None
    return found


def queues(app_name: str, current: Settings) -> list[str]:
    """Return the queues that a worker of the site must consume, each once. Raises UsageError where it has no app."""
    app = site_app(app_name)
    ours = [current.queue, current.effective_seal_queue()]
    return list(dict.fromkeys([*filter(None, ours), app.conf.task_default_queue]))


def replace_process(app_name: str, *arguments: str, **variables: str) -> NoReturn:
    """Replace this process with `celery -A app_name arguments`, so that SIGTERM reaches Celery itself (warm shutdown).

    `variables`: environment variables in addition to ours.
    """
    variables = environment.python_path(environment.with_malloc(os.environ)) | variables
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "celery", "--quiet", "-A", app_name, *arguments], variables)
