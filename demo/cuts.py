"""Where in a payload a client's connections are cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rig.proxy import Conditions, Connection, CutAtByte, Direction, Proxy


class PayloadProxy(Proxy):
    """A proxy that cuts at positions in the payload, also where it is resumed on another connection.

    `positions`: bytes, ascending. `told` is called with the position, right after a cut. One connection at a time counts.
    """

    def __init__(
        self,
        server_port: int,
        direction: Direction,
        *,
        positions: Sequence[int],
        rate: float,
        told: Callable[[int], None],
    ) -> None:
        super().__init__(server_port, Conditions(rate=rate), cuts=self._plan, on_cut=self._count)
        self.positions_left = list(positions)
        self._direction = direction
        self._told = told
        self._resumed_at = 0
        self._cutting = True

    @property
    def position(self) -> int:
        """Where in the payload the bytes are that passed last, as far as `resume_at` was told; framing counts as payload."""
        passed = self.connections[-1].passed[self._direction] if self.connections else 0
        return self._resumed_at + passed

    def resume_at(self, offset: int) -> None:
        """Take `offset` as the position where this connection's payload bytes began: its client said so."""
        self._resumed_at = offset
        self._plan_again()

    def put_off(self) -> None:
        """Make the cuts that come now wait for `go_on`."""
        self._cutting = False
        self._plan_again()

    def go_on(self) -> None:
        """Cut again; what was put off comes at once."""
        self._cutting = True
        self._plan_again()

    def _plan_again(self) -> None:
        if self.connections:
            self.connections[-1].cut_at = self._plan()

    def _plan(self, number: int = 0) -> CutAtByte | None:
        if not self._cutting or not self.positions_left:
            return None
        return CutAtByte(self._direction, max(0, self.positions_left[0] - self._resumed_at))

    def _count(self, connection: Connection) -> None:
        self.positions_left.pop(0)
        self._told(self._resumed_at + connection.passed[self._direction])
