"""The page at `/` of the reference site."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from delivery.launch.banner import terminal_lines


def home(request: HttpRequest) -> HttpResponse:
    """Say what this is, and how to send and receive from a terminal."""
    scheme = "wss" if request.is_secure() else "ws"
    lines = terminal_lines(f"{scheme}://{request.get_host()}/ws/delivery/")
    return render(request, "home.html", {"lines": lines})
