from __future__ import annotations

import pytest

from delivery.admin import cells
from delivery.admin.text import plain


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("scan.tif", "scan.tif"),
        ("\u202efdp.exe", "[U+202E]fdp.exe"),
        ("a\r\nb", "a[U+000D][U+000A]b"),
        ("nul\x00", "nul[U+0000]"),
        ("isolate\u2066\u2069", "isolate[U+2066][U+2069]"),
        ("line\u2028end", "line[U+2028]end"),
        ("\ud800", "[U+D800]"),
        ("تقرير.pdf", "تقرير.pdf"),
        ("می‌خواهم", "می‌خواهم"),
        ("<b>", "<b>"),
    ],
)
def test_control_and_formatting_characters_become_visible(hostile, shown):
    assert plain(hostile) == shown


def test_long_text_ends_in_an_ellipsis_within_its_limit():
    assert plain("x" * 300, limit=10) == "x" * 9 + "…"
    assert plain("x" * 10, limit=10) == "x" * 10


def test_a_name_is_escaped_and_isolated():
    assert cells.name('<img src=x onerror="1">') == (
        '<bdi class="delivery-name">&lt;img src=x onerror=&quot;1&quot;&gt;</bdi>'
    )


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (None, "–"),
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1023.9 KiB"),
        (1024**2, "1.0 MiB"),
        (1536 * 1024**2, "1.5 GiB"),
        (2**63 - 1, "8.0 EiB"),
        (1024**5 - 1, "1023.9 TiB"),
    ],
)
def test_sizes_are_human_and_never_rounded_up(number, shown):
    assert cells.size(number) in (shown, shown.replace("8.0 EiB", "7.9 EiB"))


def test_detail_pages_show_exact_bytes_too():
    assert cells.exact_size(1536 * 1024) == "1.5 MiB (1,572,864 bytes)"
    assert cells.exact_size(12) == "12 bytes"
    assert cells.exact_size(None) == "not known yet"


def test_a_bar_says_its_position_in_words_too():
    bar = cells.bar(1024, 4096)
    assert 'role="progressbar"' in bar
    assert 'value="25"' in bar
    assert "25 % of 4.0 KiB" in bar


def test_a_bar_is_full_only_when_everything_is_there():
    assert 'value="99"' in cells.bar(999_999, 1_000_000)
    assert 'value="100"' in cells.bar(1_000_000, 1_000_000)
    assert 'value="100"' in cells.bar(0, 0)


def test_a_payload_of_unknown_size_has_no_bar():
    bar = cells.bar(2048, None)
    assert "progress" not in bar
    assert "2.0 KiB so far" in bar
