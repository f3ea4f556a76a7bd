"""The lines to paste."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from delivery.launch.banner import local_lines, ready_text, terminal_lines

URL = "ws://127.0.0.1:8000/ws/delivery/"


def test_lines_are_short_in_the_usual_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv/bin/python"))
    lines = local_lines(URL, tmp_path / "var", tmp_path)
    token = "DELIVERY_TOKEN=$(.venv/bin/python manage.py delivery_token"
    client = ".venv/bin/python -m delivery.client"
    assert lines.send == f"{token} alice) {client} send FILE --to user:bob --url {URL}"
    assert lines.receive == f"{token} bob) {client} receive --dir received --url {URL}"


def test_other_directory_is_named_and_quoted(tmp_path: Path) -> None:
    lines = local_lines(URL, Path("/a b/var"), tmp_path)
    assert lines.send.startswith("DELIVERY_TOKEN=$(DELIVERY_VAR='/a b/var' ")


def test_lines_for_strangers_name_no_path_of_the_machine() -> None:
    lines = terminal_lines(URL)
    assert lines.send == (
        "DELIVERY_TOKEN=$(python manage.py delivery_token alice) "
        f"python -m delivery.client send FILE --to user:bob --url {URL}"
    )


def test_the_token_is_in_no_argument(tmp_path: Path) -> None:
    """What `ps` shows to every user of the machine: the shell puts the token into the environment of one process."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nif [ "$1" = manage.py ]; then echo c4n4ry; else echo "$DELIVERY_TOKEN: $@"; fi\n')
    python.chmod(0o755)
    lines = terminal_lines(URL, python=str(python))
    shown = subprocess.run(["sh", "-c", lines.receive], capture_output=True, text=True, check=True).stdout
    assert shown == f"c4n4ry: -m delivery.client receive --dir received --url {URL}\n"


def test_site_without_demo_accounts_names_no_passwords(tmp_path: Path) -> None:
    text = ready_text(port=8000, var=tmp_path, users=[], superuser=None, passwords=None)
    assert "http://127.0.0.1:8000/" in text
    assert "passwords" not in text


def test_database_of_the_environment_is_mentioned_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"port": 8000, "var": tmp_path, "users": [], "superuser": None, "passwords": None}
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert "DATABASE_URL" not in ready_text(**options)
    monkeypatch.setenv("DATABASE_URL", "postgres://u:secret@host/db")
    text = ready_text(**options)
    assert text.count("terminal with the same DATABASE_URL:") == 1
    assert "secret" not in text
