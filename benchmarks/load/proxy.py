"""A TCP proxy that can be told to hold what passes through it, as a network or a store in trouble does."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class Trouble:
    """`delay_s` before anything goes on to the client; `swallow`: nothing goes on; `refuse`: connections are closed."""

    delay_s: float = 0.0
    swallow: bool = False
    refuse: bool = False


class Proxy:
    """Passes connections on to `host`:`port`; `trouble` may be changed at any time, also by another thread."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.trouble = Trouble()
        self.own_port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    def cause(self, trouble: Trouble) -> None:
        """From now on; open connections are closed where new ones are refused."""
        self.trouble = trouble
        if trouble.refuse:
            self._loop.call_soon_threadsafe(self._close_all)

    def mend(self) -> None:
        """What was swallowed is lost, so connections are closed, as a network's are when it returns."""
        swallowed = self.trouble.swallow
        self.trouble = Trouble()
        if swallowed:
            self._loop.call_soon_threadsafe(self._close_all)

    async def start(self) -> asyncio.Server:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.own_port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.trouble.refuse:
            writer.transport.abort()
            return
        try:
            onward_reader, onward = await asyncio.open_connection(self.host, self.port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, onward}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, onward))
                group.create_task(self._pass(onward_reader, writer, slowed=True))
        except* OSError:
            pass
        finally:
            for each in (writer, onward):
                self._writers.discard(each)
                each.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slowed: bool = False) -> None:
        while data := await reader.read(1 << 16):
            if slowed and self.trouble.delay_s:
                await asyncio.sleep(self.trouble.delay_s)
            if not self.trouble.swallow:
                writer.write(data)
                await writer.drain()
        if not self.trouble.swallow:
            writer.close()

    def _close_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()


@contextlib.contextmanager
def proxied(host: str, port: int) -> Iterator[Proxy]:
    """A running proxy, in a thread of its own, until the block ends."""
    proxy = Proxy(host, port)
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with await proxy.start() as server:
            await server.serve_forever()

    async def main() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await serve()

    task = loop.create_task(main())
    thread = threading.Thread(target=lambda: loop.run_until_complete(task), daemon=True)
    thread.start()
    while not proxy.own_port:
        time.sleep(0.001)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(proxy._close_all)
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()
