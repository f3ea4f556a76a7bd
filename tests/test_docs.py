"""What the documentation says is true: generated pages are current, tables complete, links lead somewhere, commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import get_commands

import delivery
from delivery import checks
from delivery.admin.words import EVENT_KINDS
from delivery.client.cli.arguments import make_parser
from delivery.models import ClientState, PayloadState, TransferState, WaitingFor
from delivery.protocol import codes, states
from tests import docs_settings, readme

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
README = (ROOT / "README.md").read_text()
PROTOCOL = (DOCS / "reference" / "protocol.md").read_text()
STATES = (DOCS / "reference" / "states.md").read_text()


def section(page: str, title: str) -> str:
    """Return what stands under the heading `title`."""
    return re.split(r"^## ", page.split(f"\n## {title}\n", 1)[1], flags=re.M)[0]


def first_cells(text: str) -> list[str]:
    """Return the names in the first column of a table."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [name for line in lines for name in re.findall(r"`([\w.]+)`", line.split("|")[1])]


def test_settings_page_is_what_the_settings_are():
    assert docs_settings.PAGE.read_text() == docs_settings.render(), "run: python -m tests.docs_settings"


def test_settings_page_does_not_depend_on_the_machine(monkeypatch):
    result = subprocess.run(
        [sys.executable, "-c", "from tests import docs_settings; print(docs_settings.render(), end='')"],
        cwd=ROOT,
        env={**os.environ, "REDIS_URL": "redis://elsewhere:1/7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == docs_settings.PAGE.read_text()


def test_checks_page_has_every_check_with_its_text():
    page = (DOCS / "reference" / "checks.md").read_text()
    told = dict(re.findall(r"^\| `delivery\.(\w+)` \| ([^|]+?) \|", page, flags=re.M))
    docstring = dict(re.findall(r"^\| ([EW]\d+)\s*\| (.+?)\s*\|$", checks.__doc__ or "", flags=re.M))
    sources = [source.read_text() for source in Path(delivery.__file__).parent.rglob("*.py")]
    raised = {found for source in sources for found in re.findall(r'id="delivery\.([EW]\d+)"', source)}
    assert told == docstring
    assert set(told) == raised


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Payloads", PayloadState.values),
        ("Transfers", [*TransferState.values, *filter(None, WaitingFor.values)]),
        ("Clients of a delivery", ClientState.values),
        ("On one connection", [state.value for state in states.State]),
        ("Events", list(EVENT_KINDS)),
    ],
)
def test_states_page_has_every_name_and_no_other(title, names):
    assert sorted(first_cells(section(STATES, title))) == sorted(names)


def test_protocol_page_has_every_close_code():
    table = re.findall(r"^\| (\d{4}) \|", PROTOCOL, flags=re.M)
    assert {int(code) for code in table} == set(codes.CLOSE_CODES)


@pytest.mark.parametrize(
    "names",
    [codes.REJECT_CODES, codes.ABORT_CODES, codes.GOING_AWAY_CODES, codes.NACK_CODES],
    ids=["reject", "abort", "going_away", "nack"],
)
def test_protocol_page_names_every_code(names):
    missing = [name for name in names if not re.search(rf'[`"]{name}[`"]', PROTOCOL)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"`((?:delivery|tests|project|demo|docs)/[\w/.]*)`", page.read_text())
    named += re.findall(r"^    ((?:delivery|project)/[\w/.]*)  ", page.read_text(), flags=re.M)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_page_is_in_the_index():
    index = (DOCS / "README.md").read_text()
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if page != DOCS / "README.md"]
    assert [page for page in pages if f"]({page})" not in index] == []


def test_readme_is_short():
    assert len(README.splitlines()) <= 90


def test_make_targets_of_the_readme_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    named = re.findall(r"\bmake ([a-z]+)\b", README)
    assert named
    assert set(named) <= set(targets)


def test_management_commands_of_the_docs_exist():
    named = {name for page in PAGES for name in re.findall(r"manage\.py (\w+)", page.read_text())}
    assert "delivery_web" in named
    assert named <= set(get_commands())


def test_client_commands_of_the_readme_parse():
    lines = re.findall(r"-m delivery\.client (.+)$", README, flags=re.M)
    assert len(lines) == 2
    for line in lines:
        make_parser().parse_args(line.split())


def test_a_new_site_integrates_as_the_readme_says(tmp_path):
    """A site that `startproject` makes and the readme's lines change passes its checks and serves the socket's route."""
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    environment["PYTHONPATH"] = str(ROOT)

    def python(*arguments: str) -> str:
        command = [sys.executable, "-W", "error", *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert readme.STARTED in README
    python("-m", *readme.STARTED.replace("django-admin", "django").split())
    for block in readme.blocks():
        block.paste(tmp_path)
    typed = [line for line in readme.lines() if line.startswith("echo ")]
    subprocess.run(["bash", "-ec", "\n".join(typed)], cwd=tmp_path, check=True)

    assert "no issues" in python("manage.py", "check")
    python("manage.py", "migrate", "--verbosity", "0")
    route = "from mysite.asgi import application; print(application.application_mapping['websocket'].routes[0].pattern)"
    assert python("-c", route).strip() == "ws/delivery/"
