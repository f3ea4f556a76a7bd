from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from delivery.client.chunk_ceilings import REMEMBERED_SECONDS, Ceilings
from delivery.client.cli.resumption import Resumption
from delivery.client.files import write_atomically
from delivery.client.placement import candidates, clean_name
from delivery.client.receiving_directory import FOLDER, ReceivingDirectory
from delivery.errors import DeliveryError


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
        ("con .txt", "_con.txt"),
        ("COM¹", "_COM¹"),
        (".delivery", "delivery"),
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
    monkeypatch.setattr("delivery.client.chunk_ceilings.time.time", lambda: later)
    assert ceilings.get("ws://host/") is None


@pytest.mark.parametrize("content", ["", "[]", '{"ws://host/": 1}', '{"ws://host/": [3, 9e99]}', "\xff"])
def test_a_broken_ceiling_file_is_no_ceiling(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    assert Ceilings(tmp_path / "c.json").get("ws://host/") is None


def test_what_the_systems_encoding_lacks_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delivery.client.placement.os.fsencode", lambda text: text.encode("latin-1"))
    assert clean_name("é報.txt") == "é_.txt"


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "note").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "note", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that is in no /etc/passwd, as containers have."""
    for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.mark.usefixtures("no_home")
def test_without_a_home_directory_a_ceiling_lives_as_long_as_its_process() -> None:
    ceilings = Ceilings()
    ceilings.remember("ws://host/", 65_536)
    assert ceilings.get("ws://host/") == 65_536
    assert Ceilings().get("ws://host/") is None


@pytest.mark.usefixtures("no_home")
def test_without_a_home_directory_no_upload_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    arguments = (tmp_path / "a.txt", "ws://host/", ["user:1"], "a.txt")
    first, second = Resumption(*arguments), Resumption(*arguments)
    assert (first.resumed, second.resumed) == (False, False)
    assert first.transfer != second.transfer
    first.anew()
    first.forget()
    first.close()


@pytest.mark.parametrize("known", ["", "x" * 80, "!" * 80, "a b"])
def test_a_client_id_that_cannot_be_one_is_written_anew(tmp_path: Path, known: str) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "client").write_text(known)
    with ReceivingDirectory(tmp_path, "f" * 32) as here:
        assert here.client_id == "f" * 32
    with ReceivingDirectory(tmp_path, "e" * 32) as here:
        assert here.client_id == "f" * 32


def test_a_directory_is_one_process_own_and_free_after_a_failure(tmp_path: Path) -> None:
    with ReceivingDirectory(tmp_path, "f" * 32):
        for _ in range(2):
            with pytest.raises(DeliveryError, match="another process"), ReceivingDirectory(tmp_path, "e" * 32):
                pass
    with ReceivingDirectory(tmp_path, "e" * 32) as here:
        assert here.client_id == "f" * 32
