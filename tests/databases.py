"""Where the stacks that tests start keep their rows: SQLite in their directories, or with DATABASE_URL PostgreSQL.

There each stack has a database of its own, named after its directory, made at the first question and dropped when the
test run ends. The role of DATABASE_URL must be allowed to make databases, and the one that it names must exist.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

SERVER = os.environ.get("DATABASE_URL", "")
_made: set[str] = set()


def name_of(var: Path) -> str:
    """Return what Django's settings call the database of the stack whose state is in `var`."""
    return f"delivery_{hashlib.sha256(bytes(var)).hexdigest()[:16]}" if SERVER else str(var / "db.sqlite3")


def variables(var: Path, *, template: Path | None = None) -> dict[str, str]:
    """Return the environment of processes that use the database of `var`, a copy of the one of `template` if given."""
    if not SERVER:
        return {}
    if (name := name_of(var)) not in _made:
        _made.add(name)
        copied = f' TEMPLATE "{name_of(template)}"' if template else ""
        _run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)', f'CREATE DATABASE "{name}"{copied}')
    return {"DATABASE_URL": urlsplit(SERVER)._replace(path=f"/{name}").geturl()}


def drop_all() -> None:
    """Drop every database that was made here, whoever still uses it."""
    while _made:
        _run(f'DROP DATABASE IF EXISTS "{_made.pop()}" WITH (FORCE)')


def _run(*statements: str) -> None:
    with psycopg.connect(SERVER, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
