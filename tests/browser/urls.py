"""A bare page, and a login that needs no password: for tests alone."""

from collections.abc import Callable
from typing import Any

from django.contrib.auth import get_user_model, login, logout
from django.http import HttpRequest, HttpResponse
from django.urls import path

from project.urls import urlpatterns as shipped

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Browser test</title><link rel="icon" href="data:,">
<input type="file" id="file" multiple></html>"""
MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"


def content_security_policy(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["Content-Security-Policy"] = "default-src 'self'; img-src data:"
        return response

    return answer


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE)


def log_in(request: HttpRequest, pk: int) -> HttpResponse:
    login(request, get_user_model().objects.get(pk=pk), backend=MODEL_BACKEND)
    return HttpResponse(PAGE)


def log_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return HttpResponse(PAGE)


urlpatterns = [
    path("browser/", page),
    path("browser/login/<int:pk>/", log_in),
    path("browser/logout/", log_out),
    *shipped,
]
