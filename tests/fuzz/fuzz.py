"""Coverage-guided fuzzing of what decodes a peer's messages. Not part of the test suite: it never ends by itself.

    pip install atheris
    python -m tests.fuzz.fuzz tests/fuzz/found tests/fuzz/corpus -max_total_time=900

New inputs go to the first folder. `python -m tests.fuzz.keep tests/fuzz/found` copies those that
reach something new to the corpus, which `test_corpus.py` replays.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["delivery.protocol", "json"]):
    from tests.fuzz import inputs


def main() -> None:
    atheris.Setup([*sys.argv, "-max_len=4096"], inputs.take)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
