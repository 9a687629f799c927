"""HTTP/1.1 with little in its way: kept-alive connections whose requests are bytes made beforehand."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httptools

from load.generator import Answer, LoadError

MAX_CONNECTIONS = 400
"""Well below the usual limit of open files."""


def request_bytes(
    method: str, url: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    """A whole request as it goes over the wire."""
    lines = {"Host": urlsplit(url).netloc, "Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


class HttpSender:
    """Sends request number i, `make(i)`, over an idle connection, or a new one where none is idle."""

    def __init__(self, url: str, make: Callable[[int], bytes]) -> None:
        address = urlsplit(url)
        self.host, self.port = address.hostname, address.port
        self.make = make
        self._idle: list[_Connection] = []
        self._opened: set[_Connection] = set()

    async def __call__(self, index: int) -> Answer:
        """Raises LoadError where no whole answer comes."""
        connection = await self._connection()
        try:
            status, body = await connection.ask(self.make(index))
        except BaseException:  # a late answer must not meet the next request
            self._opened.discard(connection)
            connection.close()
            raise
        if connection.reusable:
            self._idle.append(connection)
        else:
            self._opened.discard(connection)
            connection.close()
        return Answer(status=status, body=body)

    async def open(self, count: int) -> None:
        """Open connections beforehand, so that the first requests do not wait for theirs."""
        made = [await self._new() for _ in range(count)]
        self._idle.extend(made)

    async def close(self) -> None:
        for connection in self._opened:
            connection.close()
        self._opened.clear()
        self._idle.clear()

    async def _connection(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            self._opened.discard(connection)
        return await self._new()

    async def _new(self) -> "_Connection":
        if len(self._opened) >= MAX_CONNECTIONS:
            raise LoadError("no connection free")
        connection = _Connection()
        self._opened.add(connection)
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, self.host, self.port)
        except OSError as error:
            self._opened.discard(connection)
            raise LoadError(f"not connected ({error.strerror or error})") from None
        except BaseException:
            self._opened.discard(connection)
            raise
        return connection


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.reusable = True
        self._transport: Any = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._begun = False
        self._parts: list[bytes] = []
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.reusable = False
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"no HTTP ({error})")

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        if self._answer and self._begun:
            self._fail("answer cut off")
        else:
            self._fail("connection closed" if error is None else f"connection lost ({type(error).__name__})")

    def on_message_begin(self) -> None:
        self._begun = True

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self.reusable = self.reusable and self._parser.should_keep_alive()
        if self._answer and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._parts)))
        self._answer = None

    def _fail(self, reason: str) -> None:
        self.reusable = False
        if self._answer and not self._answer.done():
            self._answer.set_exception(LoadError(reason))
        self._answer = None
