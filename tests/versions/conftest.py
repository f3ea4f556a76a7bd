"""The fixtures of tests/going_away: a rig of its own for each test."""

from tests.going_away.conftest import alice, connect, rig, site, template

__all__ = ["alice", "connect", "rig", "site", "template"]
