"""HTTP as the server speaks it."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # in which a request must have arrived on a connection


class Protocol(H11Protocol):
    """HTTP that closes a connection on which no request arrives; uvicorn alone would wait for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        """Start to wait for the next request."""
        answered = self.cycle
        super().on_response_complete()
        self._expect_request(answered)

    def _expect_request(self, answered: object = None) -> None:
        self.loop.call_later(HEAD_SECONDS, self._hang_up, answered)

    def _hang_up(self, answered: object) -> None:
        if self.cycle is answered:
            self.transport.close()
