"""The site's Celery app, with options that are none of delivery's, and a bootstep of its own.

`CONF_FOLDER`/<moment>.json has every option as it was at that moment.
"""

import json
import os
import time
from pathlib import Path

from celery import Celery, bootsteps, signals
from celery.app.defaults import NAMESPACES, flatten

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hostsite.settings")
FOLDER = Path(os.environ["CONF_FOLDER"])

app = Celery("hostsite")
app.config_from_object("django.conf:settings", namespace="CELERY")


def note_options(moment):
    # Every worker enters the task modules that it has imported into `include`: Celery itself does.
    names = [name for name, _ in flatten(NAMESPACES) if name != "include"]
    (FOLDER / f"{moment}.json").write_text(json.dumps({name: repr(app.conf[name]) for name in names}))


class Step(bootsteps.StartStopStep):
    """Notes that it was closed."""

    def close(self, parent):
        (FOLDER / "step").write_text("closed")


app.steps["worker"].add(Step)


@app.task(name="hostsite.slow", acks_late=True, reject_on_worker_lost=True)
def slow(path, seconds):
    """Note when it begins and when it ends."""
    for word in ("begun", "ended"):
        with open(path, "a") as file:
            file.write(f"{word}\n")
        if word == "begun":
            time.sleep(seconds)


@signals.worker_ready.connect
def on_ready(**_ignored):
    note_options("ready")


@signals.worker_process_init.connect
def on_child(**_ignored):
    note_options("child")


note_options("before")  # `delivery` is not imported yet
app.autodiscover_tasks()
