"""Rules against names that lie: a resolver that changes its mind, and a token that wants to learn of names."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from http2tcp.net.preconnect import other
from http2tcp.server.policy import Token, digest
from http2tcp.server.rules import parse_rule
from tests.support.loopback import TOKEN, Answer, asking, echo, exchange, open_raw, served, target


class Names(trio.abc.HostnameResolver):
    """Answers from a table; a name with several answers gives the next one each time that IPv4 is asked for."""

    def __init__(self, **names: list[list[str]]) -> None:
        self._names = {name.replace("_", "."): list(answers) for name, answers in names.items()}
        #: The names whose IPv4 addresses were asked for; IPv6 is asked for beside that.
        self.asked: list[str] = []
        #: A family that is never answered for.
        self.dropped: int | None = None

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        await trio.lowlevel.checkpoint()
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name == "127.0.0.1":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, port))]
        if family == socket.AF_INET:
            self.asked.append(name)
        if name == "slow.example" or family == self.dropped:
            await trio.sleep_forever()
        if name == "broken.example":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")
        if name not in self._names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = self._names[name]
        given = answers.pop(0) if len(answers) > 1 and family == socket.AF_INET else answers[0]
        found = [address for address in given if (":" in address) == (family == socket.AF_INET6)]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in found
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


def token(*allow: str, deny: Sequence[str] = ()) -> Token:
    return Token(
        "alice", digest(TOKEN), allow=[parse_rule(text) for text in allow] or None, deny=[*map(parse_rule, deny)]
    )


async def test_a_name_that_answers_differently_the_second_time_is_dialled_where_it_was_checked() -> None:
    async with target(echo) as where, served(tokens=[token("rebind.example:*")]) as server:
        port = where.rpartition(":")[2]
        names = Names(rebind_example=[["127.0.0.1"], ["169.254.169.254"]])
        trio.socket.set_custom_hostname_resolver(names)
        stream, _ = await open_raw(server.address, asking(f"rebind.example:{port}"))
        async with stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
        assert names.asked == ["rebind.example"]
        refused = await exchange(server.address, asking(f"rebind.example:{port}"))
        assert (refused.status, refused.error) == (403, "destination_ip_prohibited")


async def test_addresses_that_are_closed_are_dropped_and_the_rest_is_dialled() -> None:
    async with target(echo) as where, served(tokens=[token(deny=["10.0.0.0/8:*"])]) as server:
        port = where.rpartition(":")[2]
        answers = ["169.254.169.254", "10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a9fe:a9fe", "127.0.0.1"]
        trio.socket.set_custom_hostname_resolver(Names(mixed_example=[answers]))
        stream, _ = await open_raw(server.address, asking(f"mixed.example:{port}"))
        await stream.aclose()


async def test_a_token_with_addresses_alone_gets_one_answer_for_every_name_that_leads_elsewhere() -> None:
    trio.socket.set_custom_hostname_resolver(
        Names(
            elsewhere_example=[["192.0.2.1"]],
            metadata_example=[["169.254.169.254"]],
            denied_example=[["10.9.9.9"]],
        )
    )
    tokens = [token("10.0.0.0/8:22", "gone.example:22", deny=["10.9.0.0/16:*", "secret.example:22"])]
    async with served(tokens=tokens, connect_timeout=0.2) as server:
        answers: list[Answer] = []
        for name in ("elsewhere", "metadata", "denied", "missing", "broken", "slow", "secret"):
            answers.append(await exchange(server.address, asking(f"{name}.example:22")))
        # The port alone is enough to say so.
        answers.append(await exchange(server.address, asking("missing.example:23")))
        for written_out in ("192.0.2.1:22", "[::1]:22", "unix:/run/x.sock", "169.254.169.254:22"):
            answers.append(await exchange(server.address, asking(written_out)))
        assert {(answer.status, answer.error, answer.body) for answer in answers} == {
            (403, "http_request_denied", b"this destination is not allowed\n")
        }
        assert len({tuple(sorted(answer.headers)) for answer in answers}) == 1
        # What became of a name that it may use is told.
        assert (await exchange(server.address, asking("gone.example:22"))).error == "dns_error"


@pytest.mark.parametrize(
    ("allow", "destination", "rule"),
    [
        ([], "10.9.9.9:22", "deny 10.9.0.0/16:*"),
        ([], "denied.example:22", "deny 10.9.0.0/16:*"),
        ([], "metadata.example:22", "link-local and metadata addresses are closed to everybody"),
        (["denied.example:22"], "denied.example:22", "deny 10.9.0.0/16:*"),
        (["10.0.0.0/8:22"], "denied.example:22", "deny 10.9.0.0/16:*"),
        (["10.0.0.0/8:22"], "elsewhere.example:22", "no rule of allow opens it"),
        (["10.0.0.0/8:22"], "missing.example:22", "no rule of allow names it, and the name has no address"),
        (["10.0.0.0/8:22"], "slow.example:22", "no rule of allow names it, and no name server answered in 0.1 s"),
    ],
)
async def test_the_log_has_the_rule_that_closed_an_address(
    allow: list[str], destination: str, rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    trio.socket.set_custom_hostname_resolver(
        Names(
            elsewhere_example=[["192.0.2.1"]],
            metadata_example=[["169.254.169.254"]],
            denied_example=[["10.9.9.9"]],
            **{"10_9_9_9": [["10.9.9.9"]]},
        )
    )
    caplog.set_level(logging.INFO)
    async with served(tokens=[token(*allow, deny=["10.9.0.0/16:*"])], connect_timeout=0.1) as server:
        assert (await exchange(server.address, asking(destination))).status == 403
    (record,) = [record for record in caplog.messages if "status=403" in record]
    assert record.endswith(f" rule='{rule}'")


@pytest.mark.parametrize("dropped", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("permitted", [True, False])
async def test_the_rules_hold_where_the_resolver_drops_one_family(permitted: bool, dropped: int) -> None:
    names = Names(both_example=[["127.0.0.1", "::1"]])
    names.dropped = dropped
    trio.socket.set_custom_hostname_resolver(names)
    host = "::1" if dropped == socket.AF_INET else "127.0.0.1"
    async with served(tokens=[token(deny=[] if permitted else ["127.0.0.0/8:*", "[::1]:*"])]) as server:
        with socket.create_server((host, 0), family=other(socket.AddressFamily(dropped))) as listener:
            request = asking(f"both.example:{listener.getsockname()[1]}")
            with trio.fail_after(5):
                if permitted:
                    stream, _ = await open_raw(server.address, request)
                    await stream.aclose()
                else:
                    refused = await exchange(server.address, request)
                    assert (refused.status, refused.error) == (403, "destination_ip_prohibited")


async def test_names_that_no_rule_could_allow_are_not_even_looked_up() -> None:
    names = Names()
    trio.socket.set_custom_hostname_resolver(names)
    async with served(tokens=[token("db.example:22", "10.0.0.0/8:5432")]) as server:
        for destination in ("other.example:22", "db.example:23"):
            assert (await exchange(server.address, asking(destination))).status == 403
    assert names.asked == []


@pytest.mark.parametrize(
    "spelling",
    [
        *("127.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.0.0.1", "[::ffff:127.0.0.1]"),
        *("0", "0.0.0.0", "0x0", "[::]"),
    ],
)
async def test_a_denied_address_is_denied_however_it_is_spelled(spelling: str) -> None:
    async with target(echo) as where, served(tokens=[token(deny=["127.0.0.0/8:*"])]) as server:
        port = where.rpartition(":")[2]
        refused = await exchange(server.address, asking(f"{spelling}:{port}"))
        assert refused.status == 403, refused
