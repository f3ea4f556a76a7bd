"""A router that has everything in the database `main`."""

from typing import Any


class OnlyMain:
    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "main"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "main"
