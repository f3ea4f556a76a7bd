from __future__ import annotations

import re
from pathlib import Path

import delivery
from delivery.admin import words
from delivery.protocol.codes import CLOSE_CODES


def test_every_close_code_of_the_protocol_has_a_meaning():
    assert set(words.CLOSE_CODE_MEANINGS) >= set(CLOSE_CODES)


def test_a_close_code_is_a_number_and_a_phrase():
    assert words.close_code(1009) == "1009 message too big"
    assert words.close_code(1005) == "1005 no code given"
    assert words.close_code(4999) == "4999 unknown code"
    assert words.close_code(None) == ""


def test_only_known_close_codes_have_a_meaning():
    assert "chunks smaller" in str(words.close_code_meaning(1009))
    assert words.close_code_meaning(4999) == ""
    assert words.close_code_meaning(None) == ""


def test_a_failure_is_told_in_words():
    assert words.failure("digest") == "digest: the SHA-256 of what was stored differs from the sender's"
    assert words.failure("new\ncode") == "new[U+000A]code"


def test_every_kind_of_event_that_the_library_notes_has_words():
    """A kind without words shows as it is stored: not wrong, but not for operators."""
    sources = Path(delivery.__file__).parent.rglob("*.py")
    noted = {kind for source in sources for kind in re.findall(r'timeline\.note\(\s*"(\w+)"', source.read_text())}
    assert noted, "found no call of timeline.note: has it been renamed?"
    assert noted <= set(words.EVENT_KINDS)


def test_an_unknown_kind_of_event_shows_as_it_is():
    assert words.event_kind("begun") == "upload begun"
    assert words.event_kind("<new>") == "<new>"


def test_details_of_an_event_are_one_line_in_words():
    detail = {"code": 1009, "position": 2048, "by": "user:1", "lease": 3, "empty": ""}
    assert words.event_detail(detail) == "code 1009 message too big, position 2.0 KiB, by user:1, lease 3"
    assert words.event_detail({"code": "cancelled"}) == "code cancelled: the transfer was cancelled"
    assert words.event_detail({}) == ""
    assert words.event_detail(["odd\n"]) == "['odd\\n']"
