from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from delivery.client.ceiling import REMEMBERED_SECONDS, Ceilings
from delivery.client.files import candidates, clean_name


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("scan.tif", "scan.tif"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\eve\\x.exe", "x.exe"),
        ("..", "payload"),
        ("", "payload"),
        ("/", "payload"),
        (".bashrc", "bashrc"),
        ("evil\u202egnp.exe", "evilgnp.exe"),
        ("a\r\nb\0c\x1b[2J.txt", "abc[2J.txt"),
        ("what?.txt", "what_.txt"),
        ("CON.txt", "_CON.txt"),
        ("報告書.pdf", "報告書.pdf"),
        ("e\u0301.txt", "é.txt"),
        ("trailing. . ", "trailing"),
    ],
)
def test_clean_name(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


def test_a_long_name_keeps_its_extension() -> None:
    cleaned = clean_name("報" * 255 + ".pdf")
    assert cleaned.endswith("報.pdf")
    assert len(cleaned.encode()) <= 240


def test_candidates_are_numbered_before_the_extension() -> None:
    assert list(islice(candidates("a.tar.gz"), 3)) == ["a.tar.gz", "a.tar (1).gz", "a.tar (2).gz"]


def test_a_ceiling_is_remembered_without_login_and_query(tmp_path: Path) -> None:
    Ceilings(tmp_path / "c.json").remember("wss://me:secret@host/ws/?token=x", 65_536)
    assert "secret" not in (tmp_path / "c.json").read_text()
    assert Ceilings(tmp_path / "c.json").get("wss://host/ws/") == 65_536
    assert Ceilings(tmp_path / "c.json").get("wss://other/ws/") is None


def test_a_ceiling_is_forgotten_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = Ceilings(tmp_path / "c.json")
    ceilings.remember("ws://host/", 65_536)
    import time

    later = time.time() + REMEMBERED_SECONDS + 1
    monkeypatch.setattr("delivery.client.ceiling.time.time", lambda: later)
    assert ceilings.get("ws://host/") is None


@pytest.mark.parametrize("content", ["", "[]", '{"ws://host/": 1}', '{"ws://host/": [3, 9e99]}', "\xff"])
def test_a_broken_ceiling_file_is_no_ceiling(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    assert Ceilings(tmp_path / "c.json").get("ws://host/") is None
