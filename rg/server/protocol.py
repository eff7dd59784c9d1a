"""HTTP as the server speaks it."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # in which whoever connects must have asked


class Protocol(H11Protocol):
    """HTTP that hangs up on who connects and does not ask: uvicorn itself waits for the first request for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As asyncio says."""
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        """As uvicorn says."""
        answered = self.cycle
        super().on_response_complete()
        self._expect_request(answered)

    def _expect_request(self, answered: object = None) -> None:
        self.loop.call_later(HEAD_SECONDS, self._hang_up, answered)

    def _hang_up(self, answered: object) -> None:
        if self.cycle is answered:
            self.transport.close()
