"""Listening, draining, running out of descriptors: a server from its start to its end."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import stat
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import http2tcp
from http2tcp.address import TCPAddress, UnixAddress, parse_listen
from http2tcp.errors import ListenError
from http2tcp.net.listen import Listener, open_listeners
from http2tcp.protocol.transport import Transport
from http2tcp.server.server import serve
from http2tcp.server.settings import ServerSettings
from tests.support.loopback import (
    TOKEN,
    asking,
    echo,
    exchange,
    open_raw,
    parse_answer,
    read_all,
    served,
    target,
    upgrade,
)

# --- where it listens -------------------------------------------------------------------------


async def test_port_zero_is_any_free_port_and_the_server_says_which() -> None:
    async with served() as server, served() as another:
        assert server.address.port != 0
        assert server.address.port != another.address.port
        assert (await exchange(server.address, upgrade("/", token=None))).status == 401


async def test_an_empty_host_is_every_interface_on_one_port() -> None:
    async with target(echo) as where, served(listen=parse_listen(":0")) as server:
        assert len({address.port for address in server.addresses}) == 1
        families = {address.host for address in server.addresses}
        assert "0.0.0.0" in families
        for address in server.addresses:
            host = "::1" if ":" in address.host else "127.0.0.1"
            async with await http2tcp.open_tunnel(
                f"http://{TCPAddress(host, address.port)}/", where, token=TOKEN, transport=Transport.TCP
            ):
                pass
        async with await http2tcp.open_tunnel(
            f"http://127.0.0.2:{server.address.port}/", where, token=TOKEN, transport=Transport.TCP
        ):
            pass


async def test_an_address_that_is_taken_is_a_sentence() -> None:
    async with served() as server:
        with pytest.raises(ListenError) as caught:
            await serve(ServerSettings(listen=server.address, tokens=(TOKEN,)))
    assert str(caught.value) == f"cannot listen on {server.address}: address already in use"


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "nobody.invalid:0"])
async def test_an_address_that_is_not_ours_is_a_sentence(listen: str) -> None:
    with pytest.raises(ListenError) as caught:
        await serve(ServerSettings(listen=parse_listen(listen), tokens=(TOKEN,)))
    assert str(caught.value).startswith(f"cannot listen on {listen}: ")
    assert "[Errno" not in str(caught.value)


async def test_a_port_that_is_taken_on_one_interface_of_several_leaves_nothing_listening() -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match="in use"):
            await open_listeners(TCPAddress("", port))
        with socket.socket() as free:
            free.bind(("0.0.0.0", port))


async def test_a_server_restarts_on_a_port_whose_connections_linger() -> None:
    async with target(echo) as where:
        async with served() as first:
            stream, _ = await open_raw(first.address, asking(where))
            address = first.address
        await stream.aclose()
        async with served(listen=address):
            pass


# --- Unix sockets -----------------------------------------------------------------------------


async def over_unix(path: Path, request: bytes) -> bytes:
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(request)
        await stream.send_eof()
        return await read_all(stream)


async def test_a_server_on_a_unix_socket_carries_a_tunnel_and_takes_its_path_away_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "h.sock"
    async with target(echo) as where, served(listen=UnixAddress(str(path))) as server:
        assert server.addresses == [UnixAddress(str(path))]
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        raw = await over_unix(path, asking(where) + b"over unix")
        assert raw.endswith(b"\r\n\r\nover unix")
    assert not path.exists()
    assert "client=unix " in caplog.text


async def test_the_socket_of_a_server_that_was_killed_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "h.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        stale.listen()
    assert path.exists()
    async with served(listen=UnixAddress(str(path))):
        assert parse_answer(await over_unix(path, upgrade("/", token=None))).status == 401


async def test_the_socket_of_a_server_that_lives_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "h.sock"
    async with served(listen=UnixAddress(str(path))):
        with pytest.raises(ListenError, match="address already in use"):
            await serve(ServerSettings(listen=UnixAddress(str(path)), tokens=(TOKEN,)))
        assert parse_answer(await over_unix(path, upgrade("/", token=None))).status == 401


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ListenError):
        await serve(ServerSettings(listen=UnixAddress(str(path)), tokens=(TOKEN,)))
    assert path.read_text() == "data"


async def test_a_path_that_another_server_has_taken_over_is_not_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "h.sock"
    async with served(listen=UnixAddress(str(path))):
        path.rename(tmp_path / "moved")
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
    assert path.exists()


async def test_a_unix_target_is_reachable_where_it_is_pinned_and_only_there(tmp_path: Path) -> None:
    path = tmp_path / "target.sock"
    (listener,) = await open_listeners(UnixAddress(str(path)))
    async with trio.open_nursery() as nursery:

        async def echo_once(sock: socket.socket) -> None:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
                await echo(stream)

        def accepted(sock: socket.socket, peer: TCPAddress | None) -> None:
            nursery.start_soon(echo_once, sock)

        nursery.start_soon(listener.accept_forever, accepted)
        async with served(destination=UnixAddress(str(path))) as server:
            for request in (upgrade("/"), asking(f"unix:{path}")):
                stream, _ = await open_raw(server.address, request)
                async with stream:
                    await stream.send_all(b"data")
                    await stream.send_eof()
                    assert await read_all(stream) == b"data"
            refused = await exchange(server.address, asking(f"unix:{path}x"))
            assert (refused.status, refused.error) == (403, "http_request_denied")
        async with served() as server:
            refused = await exchange(server.address, asking(f"unix:{path}"))
            assert (refused.status, refused.error) == (403, "http_request_denied")
        nursery.cancel_scope.cancel()
    listener.close()


# --- draining ---------------------------------------------------------------------------------


async def test_draining_serves_what_is_queued_closes_the_listener_and_lets_sessions_finish() -> None:
    async with target(echo) as where, served() as server:
        session, _ = await open_raw(server.address, asking(where))
        # The server's task has no turn between these connections and the drain: they are in the kernel's queue.
        queued = [socket.create_connection(("127.0.0.1", server.address.port)) for _ in range(20)]
        server.drain.set()
        for sock in queued:
            sock.sendall(asking(where) + b"queued")
            sock.shutdown(socket.SHUT_WR)
        for sock in queued:
            sock.setblocking(False)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
                raw = await read_all(stream)
            assert raw.startswith(b"HTTP/1.1 101 ")
            assert raw.endswith(b"\r\n\r\nqueued")
        with pytest.raises(OSError, match=r"all attempts to connect|[Rr]efused"):
            await trio.open_tcp_stream("127.0.0.1", server.address.port)
        assert not server.ended.is_set()
        async with session:
            await session.send_all(b"still here")
            await session.send_eof()
            assert await read_all(session) == b"still here"
        await server.ended.wait()


async def test_a_connection_whose_head_is_on_its_way_is_served_while_draining() -> None:
    async with target(echo) as where, served() as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.address.port) as stream:
            request = asking(where)
            await stream.send_all(request[:20])
            await trio.testing.wait_all_tasks_blocked(0.02)
            server.drain.set()
            await trio.testing.wait_all_tasks_blocked(0.02)
            await stream.send_all(request[20:] + b"x")
            await stream.send_eof()
            assert (await read_all(stream)).endswith(b"\r\n\r\nx")
        await server.ended.wait()


async def test_sessions_that_go_on_are_ended_when_the_grace_is_over(patient_clock: trio.testing.MockClock) -> None:
    async with target(echo) as where, served(grace=30) as server:
        stream, _ = await open_raw(server.address, asking(where))
        async with stream:
            server.drain.set()
            started = trio.current_time()
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            assert trio.current_time() - started == pytest.approx(30, abs=1)
        await server.ended.wait()


async def test_a_server_without_sessions_ends_as_soon_as_it_is_told(patient_clock: trio.testing.MockClock) -> None:
    async with served() as server:
        server.drain.set()
        await server.ended.wait()
        assert trio.current_time() < 1


async def test_a_second_stop_ends_the_sessions_at_once(patient_clock: trio.testing.MockClock) -> None:
    async with target(echo) as where, served() as server:
        stream, _ = await open_raw(server.address, asking(where))
        server.drain.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        server.scope.cancel()
        with trio.CancelScope(shield=True):
            async with stream:
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
            assert trio.current_time() < 1


async def test_a_silent_client_is_answered_with_408_over_a_real_socket(patient_clock: trio.testing.MockClock) -> None:
    async with served() as server:
        refused = await exchange(server.address, b"GET / HTTP/1.1\r\n")
    assert refused.status == 408
    assert trio.current_time() == pytest.approx(10, abs=1)


# --- running out of descriptors ---------------------------------------------------------------


async def test_a_server_without_descriptors_says_so_once_and_recovers() -> None:
    """In a process of its own, whose limit is lowered for a while."""
    script = textwrap.dedent(
        """
        import logging, resource, socket, sys
        import trio, trio.testing
        from http2tcp.address import parse_listen
        from http2tcp.server.server import serve
        from http2tcp.server.settings import ServerSettings

        async def main():
            clock = []
            async with trio.open_nursery() as nursery:
                settings = ServerSettings(listen=parse_listen("127.0.0.1:0"), tokens=("t0ken",))
                (address,) = await nursery.start(serve, settings)
                asking = b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n"
                clients = [socket.create_connection((address.host, address.port)) for _ in range(30)]
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (len(__import__("os").listdir("/proc/self/fd")) + 5, hard))
                # Five are accepted; for the others the loop tries again and again.
                await trio.sleep(0.35)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for client in clients:
                    try:
                        client.sendall(asking)
                    except ConnectionError:
                        pass
                answered = 0
                for client in clients:
                    client.setblocking(False)
                    stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
                    try:
                        answered += (await stream.receive_some()).startswith(b"HTTP/1.1 401 ")
                    except trio.BrokenResourceError:
                        pass  # it had said nothing, and others needed its place
                    await stream.aclose()
                assert answered >= 20, answered
                nursery.cancel_scope.cancel()

        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stdout)
        trio.run(main)
        """
    )
    done = await trio.run_process([sys.executable, "-c", script], capture_stdout=True, check=False, cwd=os.getcwd())
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [
        "ERROR cannot accept connections: too many open files (raise ulimit -n, or a unit's LimitNOFILE=); retrying",
        "WARNING connections can be accepted again",
    ]


async def test_a_server_that_runs_out_of_descriptors_again_and_again_does_not_flood_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """Each one that becomes free is taken by the next connection, for as long as an attack lasts."""
    codes = [errno.EMFILE, errno.EAGAIN, 0] * 1000

    def accept() -> tuple[socket.socket, None]:
        if len(codes) == 1:
            end.cancel()
        if code := codes.pop():
            raise OSError(code, os.strerror(code))
        return socket.socket(), None

    with socket.socket() as sock, socket.socket() as client:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        client.connect(sock.getsockname())
        listener = Listener(sock)
        monkeypatch.setattr(listener, "_accept", accept)
        with trio.CancelScope() as end:
            await listener.accept_forever(lambda accepted, peer: accepted.close())
    # In a hundred seconds.
    assert not codes
    assert 2 <= len(caplog.messages) <= 6
    assert "too many open files" in caplog.messages[0]


async def test_a_drain_without_descriptors_still_serves_what_was_queued() -> None:
    """In a process of its own: five are accepted before the drain, the others as these end."""
    script = textwrap.dedent(
        """
        import os, resource, socket
        import trio
        from http2tcp.address import parse_listen
        from http2tcp.server.server import serve
        from http2tcp.server.settings import ServerSettings

        async def main():
            drain = trio.Event()
            async with trio.open_nursery() as nursery:

                async def run(*, task_status):
                    settings = ServerSettings(listen=parse_listen("127.0.0.1:0"), tokens=("t0ken",))
                    await serve(settings, drain=drain, task_status=task_status)

                (address,) = await nursery.start(run)
                clients = [socket.create_connection((address.host, address.port)) for _ in range(30)]
                for client in clients:
                    client.setblocking(False)
                _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 5, hard))
                drain.set()
                for client in clients:
                    client.send(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
                for client in clients:
                    stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
                    assert (await stream.receive_some()).startswith(b"HTTP/1.1 401 ")
                    await stream.aclose()

        trio.run(main)
        """
    )
    with trio.fail_after(20):
        done = await trio.run_process([sys.executable, "-c", script], capture_stderr=True, check=False, cwd=os.getcwd())
    assert done.returncode == 0, done.stderr.decode()


async def test_a_server_that_cannot_dial_for_want_of_descriptors_is_at_its_limit() -> None:
    async with target(echo) as where, served() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.address.port)
        await trio.testing.wait_all_tasks_blocked(0.05)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with stream:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                await stream.send_all(asking(where))
                raw = await read_all(stream)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    refused = parse_answer(raw)
    assert (refused.status, refused.error) == (503, "connection_limit_reached")
    assert int(refused.headers["retry-after"]) > 0


async def test_a_login_finds_a_descriptor_where_a_crowd_that_says_nothing_has_taken_all() -> None:
    async with target(echo) as where, served() as server:
        address = (server.address.host, server.address.port)
        crowd = [await trio.open_tcp_stream(*address) for _ in range(40)]
        with socket.socket() as client:
            client.setblocking(False)
            login = trio.socket.from_stdlib_socket(client)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
            try:
                # In less time than the head's, after which the crowd goes by itself.
                with trio.fail_after(5):
                    await login.connect(address)
                    await login.send(asking(where))
                    assert (await login.recv(4096)).startswith(b"HTTP/1.1 101 ")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for stream in crowd:
            await stream.aclose()


async def test_a_crowd_is_taken_in_a_few_turns_however_busy_the_server_is() -> None:
    """Each turn moves the bytes of all tunnels: with one connection a turn, a login behind a crowd waits for long."""
    (listener,) = await open_listeners(parse_listen("127.0.0.1:0"))
    assert isinstance(listener.address, TCPAddress)
    where = (listener.address.host, listener.address.port)
    crowd = [socket.create_connection(where) for _ in range(200)]
    connections: list[socket.socket] = []
    turns = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.accept_forever, lambda connection, peer: connections.append(connection))
        while len(connections) < len(crowd):
            await trio.lowlevel.checkpoint()
            turns += 1
        nursery.cancel_scope.cancel()
    listener.close()
    for each in (*connections, *crowd):
        each.close()
    # And not all in one: the tunnels have their turn in between.
    assert 2 < turns < 40


class FlakyListener(socket.socket):
    """Its first connections are gone before they are accepted, which accept(2) tells by many errors."""

    def __init__(self, *codes: int) -> None:
        super().__init__()
        self.codes = list(codes)
        self.bind(("127.0.0.1", 0))
        self.listen()

    def accept(self) -> Any:
        if self.codes:
            raise OSError(self.codes.pop(), "gone already")
        return super().accept()


async def test_one_connection_that_failed_before_it_was_accepted_does_not_stop_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = Listener(FlakyListener(errno.ECONNABORTED, errno.EPROTO))
    peers: list[TCPAddress | None] = []
    async with trio.open_nursery() as nursery:

        def accepted(connection: socket.socket, peer: TCPAddress | None) -> None:
            connection.close()
            peers.append(peer)
            nursery.cancel_scope.cancel()

        nursery.start_soon(listener.accept_forever, accepted)
        assert isinstance(listener.address, TCPAddress)
        with socket.create_connection((listener.address.host, listener.address.port)) as client:
            name = client.getsockname()
            await trio.sleep_forever()
    listener.close()
    assert peers == [TCPAddress("127.0.0.1", name[1])]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_drain_takes_the_rest_of_the_queue_although_one_of_it_is_gone() -> None:
    sock = FlakyListener(errno.ECONNABORTED)
    listener = Listener(sock)
    connections: list[socket.socket] = []
    clients = [socket.create_connection(sock.getsockname()) for _ in range(3)]
    listener.accept_queued(lambda connection, peer: connections.append(connection))
    for each in (*connections, *clients):
        each.close()
    listener.close()
    assert len(connections) == 3
