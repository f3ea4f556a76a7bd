"""What is in the wheel, and what each extra brings along."""

from __future__ import annotations

import subprocess
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

from tests.launch.live import ROOT
from tests.wheel.conftest import Installed, environment, install, run


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    """Templates, static files, translations, scripts and the mark of a typed package, whatever they are called."""
    listed = subprocess.run(["git", "ls-files", "delivery"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]
    assert {"delivery/py.typed", "delivery/static/delivery/admin.css"} <= set(tracked)
    held = set(zipfile.ZipFile(wheel).namelist())
    assert [name for name in tracked if name not in held] == []


def test_nothing_but_the_package_is_in_the_wheel(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"delivery"}


def test_kinds_of_files_that_are_not_there_yet_will_be(wheel: Path) -> None:
    """Translations and Lua scripts: no commit that adds the first one has to think of the wheel."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    assert {"templates/**/*", "static/**/*", "locale/**/*", "*.lua", "py.typed"} <= set(patterns)


def test_its_name_is_not_that_of_another_project(wheel: Path) -> None:
    (name,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/METADATA"))
    metadata = message_from_string(zipfile.ZipFile(wheel).read(name).decode())
    assert metadata["Name"] == "django-delivery"
    assert {"server", "client", "embedded"} <= set(metadata.get_all("Provides-Extra") or ())


def test_the_server_extra_has_what_the_web_server_imports(server: Installed) -> None:
    run(server.python, "-c", "import delivery.websocket.server, uvloop, hiredis", cwd=server.folder)


def test_the_client_extra_needs_no_django(client: Installed) -> None:
    said = run(client.python, "-m", "delivery.client", "send", "--help", cwd=client.folder)
    assert "--to ADDRESS" in said
    missing = (
        "import importlib.util as u; print([n for n in ('django', 'redis', 'celery', 'uvicorn') if u.find_spec(n)])"
    )
    assert run(client.python, "-c", missing, cwd=client.folder).strip() == "[]"


def test_without_an_extra_the_client_names_it(wheel: Path, tmp_path: Path) -> None:
    bare = install(wheel, "", tmp_path / "bare")
    command = [bare.python, "-m", "delivery.client", "send", __file__]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("websockets is missing: pip install 'django-delivery[client]'")
