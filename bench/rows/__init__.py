"""The rows of the table, one module each, in the order of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import cast

from bench.bench import Row

NAMES = (
    "upload_vs_nginx_put",
    "upload_vs_tus_node",
    "upload_vs_tuspyserver",
    "download_vs_nginx",
    "download_vs_fileresponse",
    "fanout_vs_nginx",
    "relay_vs_tus_http",
    "inline_vs_channels",
    "inline_rate_vs_channels",
    "workers_scale",
    "many_uploads_vs_one",
    "idle_kib_per_connection",
    "reconnect_1000_s",
    "memory_10gib",
    "small_beside_large_ms",
    "drain_ms",
    "cost_slope",
)
ROWS: Mapping[str, Row] = {name: cast(Row, import_module(f"bench.rows.{name}")) for name in NAMES}


def chosen(only: Sequence[str]) -> list[str]:
    """Return the names of the rows that contain any of `only`; all where it is empty."""
    return [name for name in ROWS if not only or any(part in name for part in only)]
