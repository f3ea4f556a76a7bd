"""A PostgreSQL server of our own, where one can be had."""

from __future__ import annotations

import psycopg
import pytest

from rig import postgres

pytestmark = pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing() or "PostgreSQL is there")


def test_a_server_takes_queries_and_leaves_nothing_behind():
    with postgres.running() as server:
        with psycopg.connect(server.url) as connection:
            (folder,) = connection.execute("SHOW data_directory").fetchone()
            assert postgres.version().split()[-1].split(".")[0] in connection.execute("SELECT version()").fetchone()[0]
        assert server._folder.as_posix() in folder
    assert not server._folder.exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.url)


def test_a_server_that_does_not_start_says_why(monkeypatch):
    taken = postgres.Server()
    try:
        monkeypatch.setattr(postgres, "free_port", lambda: taken.port)
        monkeypatch.setattr(postgres, "_takes_queries", lambda url: False)
        with pytest.raises(OSError, match=r"(?s)did not start: .*already in use"):
            postgres.Server()
    finally:
        taken.stop()


def test_the_programs_of_the_wheel_are_found(tmp_path, monkeypatch):
    for version in ("", "18"):
        (tmp_path / postgres.WHEEL / f"pginstall{version}" / "bin").mkdir(parents=True)
    (tmp_path / postgres.WHEEL / "__init__.py").write_text("raise RuntimeError('it is not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert [folder.parent.name for folder in postgres._of_wheel()] == ["pginstall18", "pginstall"]
