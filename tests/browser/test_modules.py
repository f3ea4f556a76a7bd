"""The JavaScript modules as they are shipped: their own tests, their types, their size, and Django's static files."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from django.core.management import call_command
from django.test import override_settings

from tests.browser.browsers import without_packages

FOLDER = Path(__file__).parent
MODULES = FOLDER.parents[1] / "delivery" / "static" / "delivery"
SHIPPED = sorted(MODULES.rglob("*.js"))
MOST_BYTES = 60 * 1024  # of protocol/ and client/ together, gzipped
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@needs_node
def test_the_modules_pass_their_own_tests():
    said = run("node", "--test", "--test-reporter=tap", "unit/")
    passed = re.search(r"^# pass (\d+)", said, flags=re.M)
    assert passed is not None
    assert int(passed[1]) > 300


@needs_node
def test_the_types_of_the_modules_are_right():
    if why := without_packages():
        pytest.skip(why)
    run("node_modules/.bin/tsc", "--project", "tsconfig.json")


def test_protocol_and_client_are_small_together():
    read = [path.read_bytes() for path in SHIPPED if path.parent.name in ("protocol", "client")]
    assert len(gzip.compress(b"".join(read), 9)) <= MOST_BYTES


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(MODULES).as_posix())
def test_a_module_loads_nothing_but_its_siblings(path):
    """No code from a string, no module from elsewhere, no `import()` that Django's aggregation rewrites in comments."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\bimport\(|\beval\(|new Function\b|\bWebAssembly\b|\.innerHTML\b", text)
    for found in re.findall(r'^(?:import|export) .*? from "([^"]+)";$', text, flags=re.M | re.S):
        assert (path.parent / found).resolve() in SHIPPED


@pytest.mark.parametrize("aggregation", [False, True], ids=["names kept", "modules aggregated"])
def test_manifest_static_files_take_the_modules(tmp_path, aggregation):
    backend = (
        "tests.browser.static_files.AggregatingStorage" if aggregation else "tests.browser.static_files.PlainManifest"
    )
    storages = {
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {"BACKEND": backend},
    }
    with override_settings(STATIC_ROOT=str(tmp_path), STORAGES=storages):
        call_command("collectstatic", interactive=False, verbosity=0)
    collected = list(tmp_path.glob("delivery/client/client.*.js"))
    assert collected
    if aggregation:
        assert re.search(r'from "\./connection\.[0-9a-f]{12}\.js"', collected[0].read_text())
