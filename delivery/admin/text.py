"""Text that somebody else chose, made harmless for an operator's eyes. HTML is escaped later, where it is put into HTML.

A file name may hold line breaks, which forge a second line, and right-to-left overrides, which make `exe.pdf` of
`fdp.exe`. Neither is dropped: an operator should see that it was there.
"""

from __future__ import annotations

import unicodedata

# Needed to write Persian and several emoji; they move nothing.
_JOINERS = "\u200c\u200d"
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})


def plain(value: object, *, limit: int = 0) -> str:
    """Return `value` as one line in which every control and invisible formatting character shows as `[U+202E]`.

    `limit`: longest result in characters, an ellipsis included; 0 is no limit.
    """
    text = "".join(_visible(character) for character in str(value))
    return text if not limit or len(text) <= limit else text[: limit - 1] + "…"


def _visible(character: str) -> str:
    if unicodedata.category(character) in _INVISIBLE and character not in _JOINERS:
        return f"[U+{ord(character):04X}]"
    return character
