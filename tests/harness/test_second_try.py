"""What is repeated, what then counts, and what the run says of it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
#: Fails at the first call of each name.
ONCE = """
    from pathlib import Path

    def once(name):
        seen = Path(__file__).with_name(name)
        if not seen.exists():
            seen.touch()
            raise AssertionError("too slow: " + name)
"""
SIDE_BY_SIDE = pytest.mark.parametrize("workers", [(), ("-n2", "--dist=loadfile")], ids=["one process", "two workers"])


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a second of each run
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin")
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\n")

    def run(*options: str, **files: str) -> pytest.RunResult:
        pytester.makepyfile(**{name: textwrap.dedent(ONCE) + textwrap.dedent(text) for name, text in files.items()})
        return pytester.runpytest_subprocess("-p", "tests.harness.second_try", "-p", "no:cacheprovider", *options)

    return run


@SIDE_BY_SIDE
def test_what_passes_when_repeated_counts_as_passed_and_is_named(run, workers):
    result = run(
        *workers,
        test_a="""
    def test_slow(): once("slow")
    def test_quick(): pass
    """,
        test_b="def test_other(): pass",
    )
    result.stdout.fnmatch_lines(["*too slow: slow*", "FLAKY test_a.py::test_slow"])
    result.stdout.re_match_lines([r"=+ 3 passed in .*s =+"])
    assert result.ret == 0
    assert result.stdout.lines[-1].strip("= ").startswith("3 passed in")
    result.stdout.no_fnmatch_line("FLAKY*test_quick*")


@SIDE_BY_SIDE
def test_what_fails_twice_has_failed_whatever_else_was_flaky(run, workers):
    result = run(
        *workers,
        test_a="""
    def test_slow(): once("slow")
    def test_wrong(): assert 1 == 2
    """,
        test_b="def test_other(): pass",
    )
    result.stdout.fnmatch_lines(["FLAKY test_a.py::test_slow", "FAILED test_a.py::test_wrong*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.stdout.lines[-1].strip("= ").startswith("1 failed, 2 passed in")
    result.stdout.no_fnmatch_line("FLAKY*test_wrong*")


def test_only_what_failed_is_repeated(run, pytester):
    run(
        test_a="""
    def count(name):
        with Path(__file__).with_name("ran").open("a") as ran:
            ran.write(name + " ")
    def test_slow(): count("slow"); once("slow")
    def test_quick(): count("quick")
    """
    )
    assert (pytester.path / "ran").read_text().split() == ["slow", "quick", "slow"]


def test_failures_around_a_test_are_repeated_too(run):
    result = run(
        test_a="""
    import pytest

    @pytest.fixture
    def before(): once("before")

    @pytest.fixture
    def after():
        yield
        once("after")

    def test_before(before): pass
    def test_after(after): pass
    """
    )
    result.stdout.fnmatch_lines(["FLAKY test_a.py::test_before", "FLAKY test_a.py::test_after"], consecutive=True)
    assert result.ret == 0
    assert result.stdout.lines[-1].strip("= ").startswith("2 passed in")


def test_names_of_any_text_are_repeated(run):
    result = run(
        test_a="""
    import pytest

    @pytest.mark.parametrize("text", ["a::b[c]", "-k x", "  spaces"])
    def test_text(text): once(str(len(text)))
    """
    )
    assert result.ret == 0
    assert result.stdout.lines[-1].strip("= ").startswith("3 passed in")


def test_a_test_that_is_skipped_when_repeated_has_failed(run):
    result = run(
        test_a="""
    import pytest

    def test_gone():
        try:
            once("gone")
        except AssertionError:
            raise
        pytest.skip("the server is gone")
    """
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.stdout.lines[-1].strip("= ").startswith("1 failed in")


def test_a_dead_worker_is_repeated(run):
    result = run(
        "-n2",
        "--dist=loadfile",
        test_a="""
    import os

    def test_dies():
        try:
            once("dies")
        except AssertionError:
            os._exit(9)
    """,
        test_b="def test_other(): pass",
    )
    result.stdout.fnmatch_lines(["FLAKY test_a.py::test_dies"])
    assert result.ret == 0


def test_a_module_that_cannot_be_imported_fails_the_run(run):
    result = run("-n2", "--dist=loadfile", test_a="import missing_module", test_b="def test_other(): pass")
    assert result.ret != 0
    assert "1 error" in result.stdout.lines[-1]


def test_a_run_without_failures_repeats_nothing(run):
    result = run(test_a="def test_quick(): pass")
    result.stdout.no_fnmatch_line("Repeating*")
    assert result.ret == 0
