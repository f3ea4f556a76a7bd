"""The lines to paste."""

from __future__ import annotations

from pathlib import Path

import pytest

from delivery.launch.banner import local_lines, ready_text, terminal_lines

URL = "ws://127.0.0.1:8000/ws/delivery/"


def test_lines_are_short_in_the_usual_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv/bin/python"))
    lines = local_lines(URL, tmp_path / "var", tmp_path)
    token = "--token $(.venv/bin/python manage.py delivery_token"
    assert lines.send == f".venv/bin/python -m delivery.client send FILE --to user:bob --url {URL} {token} alice)"
    assert lines.receive == f".venv/bin/python -m delivery.client receive --dir received --url {URL} {token} bob)"


def test_other_directory_is_named_and_quoted(tmp_path: Path) -> None:
    lines = local_lines(URL, Path("/a b/var"), tmp_path)
    assert "--token $(DELIVERY_VAR='/a b/var' " in lines.send


def test_lines_for_strangers_name_no_path_of_the_machine() -> None:
    lines = terminal_lines(URL)
    assert lines.send == (
        f"python -m delivery.client send FILE --to user:bob --url {URL} "
        "--token $(python manage.py delivery_token alice)"
    )


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
