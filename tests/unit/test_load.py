"""The load generator: arrivals are fixed beforehand, latency counts from them, and nothing paces it."""

import asyncio
import contextlib
import dataclasses
import time

import numpy as np
import pytest
from load.arrivals import constant, poisson
from load.generator import Answer, Outcome, offer, run
from load.http1 import HttpSender, request_bytes
from load.proxy import Trouble, proxied
from load.summary import summarise
from load.sweep import chart, sweep

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def replying(reply):
    """A server that gives `await reply(number of the request)` to each request; yields its address."""
    asked = iter(range(10**9))

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                answer = await reply(next(asked))
                if answer is None:
                    break
                writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def sender(url):
    request = request_bytes("GET", url, "/")
    return HttpSender(url, lambda index: request)


def test_poisson_arrivals_are_seeded_and_of_the_rate():
    times = poisson(200, 50, seed=3)
    np.testing.assert_array_equal(times, poisson(200, 50, seed=3))
    assert (np.diff(times) > 0).all()
    assert 0 < times[0] < times[-1] < 50
    assert len(times) == pytest.approx(10_000, abs=4 * 100)  # four deviations of a Poisson count
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.05)  # an exponential's deviation is its mean
    np.testing.assert_allclose(constant(4, 1), [0, 0.25, 0.5, 0.75])


def test_a_stall_counts_for_every_request_that_was_due_in_it():
    """One request at a time stalls 0.4 s; a generator that waited for it would count one slow request, not twenty."""
    free = asyncio.Lock()

    async def send(index):
        async with free:
            await asyncio.sleep(0.4 if index == 5 else 0)
        return Answer(status=200, body=None)

    outcomes = run(offer(constant(50, 1), send))
    slow = [outcome for outcome in outcomes if outcome.latency_s > 0.02]
    assert len(slow) >= 17  # those due in the 0.4 s
    assert summarise(outcomes, 1).p90 > 150


def test_latency_counts_from_the_schedule_even_if_the_generator_is_late():
    async def send(index):
        if index == 0:
            time.sleep(0.1)  # the generator itself is stopped
        return Answer(status=200, body=None)

    outcomes = run(offer(constant(100, 0.1), send))
    assert outcomes[5].latency_s > 0.045
    assert summarise(outcomes, 0.1).lateness_ms > 50


def test_real_connections_are_kept_and_errors_are_counted_by_kind():
    async def reply(number):
        if number == 3:
            return None
        if number == 4:
            return REPLY.replace(b"200 OK", b"503 Busy")
        if number == 5:
            await asyncio.sleep(4)
        if number == 6:
            return b"SMTP"
        return REPLY

    async def main():
        async with replying(reply) as url:
            send = sender(url)
            outcomes = await offer(constant(20, 0.5), send, timeout_s=2)
            await send.close()
        gone = await offer(constant(10, 0.1), sender(url))
        return outcomes, gone

    outcomes, gone = run(main())
    errors = [outcome.error for outcome in outcomes]
    assert errors[3:6] == ["connection closed", "status 503", "timeout"]
    assert errors[6].startswith("no HTTP")
    assert [outcome.answer.body for outcome in outcomes if not outcome.error] == [b"ok"] * 6
    assert sum(summarise(outcomes, 0.5).errors.values()) == 4
    assert gone[0].error.startswith("not connected")


def test_a_sweep_ends_where_the_server_does_not_keep_up():
    async def main():
        free = asyncio.Lock()

        async def reply(number):
            async with free:
                await asyncio.sleep(0.01)  # 100 a second at most
            return REPLY

        async with replying(reply) as url:
            request = request_bytes("GET", url, "/")
            return await sweep(url, lambda index: request, [20, 400, 800], 1.0)

    found = run(main())
    assert [summary.saturated for summary in found] == [False, True]
    assert found[0].p50 < found[1].p50
    assert found[1].answered_rate < 110
    assert "p99" in chart({"slow server": found})
    assert "slow server" in chart({"slow server": found, "the same": found})


def test_a_few_hundred_a_second_are_all_answered():
    async def main():
        async def reply(number):
            return REPLY

        async with replying(reply) as url:
            send = sender(url)
            try:
                return await offer(poisson(300, 1, seed=0), send)
            finally:
                await send.close()

    outcomes = run(main())
    assert not [outcome.error for outcome in outcomes if outcome.error]
    assert len(outcomes) > 230


def test_summary_of_known_latencies():
    outcomes = [
        Outcome(scheduled_s=i / 100, sent_s=i / 100, done_s=i / 100 + (i + 1) / 1000, error="", answer=None)
        for i in range(100)
    ]
    summary = summarise(outcomes, 1.0)
    assert (summary.p50, summary.max) == (pytest.approx(50.5), pytest.approx(100))
    assert summary.p99 == pytest.approx(99.01)
    assert summary.offered_rate == 100
    assert summary.answered_rate == 91  # request i is done at 11 i + 1 ms
    assert summary.kept_up == 1
    assert not summary.saturated
    slow = summarise([dataclasses.replace(outcome, done_s=outcome.scheduled_s + 0.305) for outcome in outcomes], 1.0)
    assert slow.kept_up == pytest.approx(70 / 90)  # of those due before 0.9 s
    assert slow.saturated


def test_the_proxy_passes_delays_swallows_refuses_and_mends():
    async def main():
        async def reply(number):
            return REPLY

        async with replying(reply) as url:
            with proxied("127.0.0.1", int(url.rsplit(":", 1)[1])) as proxy:
                send = sender(f"http://127.0.0.1:{proxy.own_port}")

                async def ask(timeout_s=10):
                    (outcome,) = await offer(np.zeros(1), send, timeout_s=timeout_s)
                    return outcome

                plain = await ask()
                proxy.cause(Trouble(delay_s=0.2))
                delayed = await ask()
                proxy.cause(Trouble(swallow=True))
                swallowed = await ask(0.5)
                proxy.mend()
                mended = await ask()
                proxy.cause(Trouble(refuse=True))
                await asyncio.sleep(0.05)
                refused = await ask()
                proxy.mend()
                return plain, delayed, swallowed, mended, refused, await ask()

    plain, delayed, swallowed, mended, refused, last = run(main())
    assert (plain.error, mended.error, last.error) == ("", "", "")
    assert delayed.latency_s >= 0.2
    assert swallowed.error == "timeout"
    assert refused.error.startswith("connection ")
