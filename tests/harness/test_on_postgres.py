"""What runs on PostgreSQL too counts with the rest; where there is no server the run says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from rig import postgres

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
TEXT = """
    import os
    import pytest

    def test_everywhere(): pass
    def test_wrong_there(): assert not os.environ.get("DATABASE_URL")
    def test_there_only():
        if not os.environ.get("DATABASE_URL"):
            pytest.skip("wants a server")
        import psycopg
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            assert "PostgreSQL" in connection.execute("SELECT version()").fetchone()[0]
"""
needs_server = pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing() or "PostgreSQL is there")


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a second of each run
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin")
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\n")
    pytester.makepyfile(test_a=TEXT, test_b="def test_other(): pass")

    def run(*options: str) -> pytest.RunResult:
        plugins = ["-p", "tests.harness.second_try", "-p", "tests.harness.on_postgres", "-p", "no:cacheprovider"]
        return pytester.runpytest_subprocess(*plugins, "--postgres-part=test_a.py", *options)

    return run


@needs_server
@pytest.mark.parametrize("workers", [(), ("-n2", "--dist=loadfile")], ids=["one process", "two workers"])
def test_the_part_counts_with_the_rest(run, workers):
    result = run(*workers)
    result.stdout.fnmatch_lines(["FAILED test_a.py::test_wrong_there on PostgreSQL*"])
    result.stdout.no_fnmatch_line("FLAKY*")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.stdout.lines[-1].strip("= ").startswith("1 failed, 5 passed, 1 skipped in")


@needs_server
def test_a_part_that_cannot_be_run_fails_the_run(run, pytester):
    pytester.makepyfile(test_a="import os; assert 'DATABASE_URL' not in os.environ")
    result = run()
    result.stdout.fnmatch_lines(["FAILED: pytest on PostgreSQL ended with status 2"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_run_that_is_on_a_server_anyway_says_so(run, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgres://elsewhere")
    result = run("-k", "everywhere")
    result.stdout.fnmatch_lines(["Nothing is run on PostgreSQL: DATABASE_URL is set*"])
    assert result.ret == 0


def test_a_machine_without_a_server_says_so(run, pytester):
    pytester.makeconftest("from rig import postgres\npostgres.missing = lambda: 'PostgreSQL is not installed'")
    result = run()
    result.stdout.fnmatch_lines(["Nothing is run on PostgreSQL: PostgreSQL is not installed"])
    assert result.ret == 0
