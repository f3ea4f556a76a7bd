"""A Django site of one view. BENCH_FILES: the directory that it serves."""

from __future__ import annotations

import os
from pathlib import Path

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import FileResponse, HttpRequest
from django.urls import path

settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__, SECRET_KEY="bench", MIDDLEWARE=[])


def send(request: HttpRequest, name: str) -> FileResponse:
    return FileResponse(open(Path(os.environ["BENCH_FILES"]) / Path(name).name, "rb"))


urlpatterns = [path("<str:name>", send)]
app = get_asgi_application()
