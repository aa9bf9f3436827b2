"""Every way through a connection's life, as playbooks: what happens to it, and what it does, step by step."""

from __future__ import annotations

import pytest
import trio.testing

from http2tcp.address import parse_destination
from http2tcp.server import connection as connection_module
from http2tcp.server.limits import Limits
from http2tcp.server.policy import Token, digest
from http2tcp.server.rules import parse_rule
from tests.support.loopback import TOKEN, asking, upgrade
from tests.support.playbook import (
    Playbook,
    accepts,
    answers,
    client_ends,
    client_gets,
    client_resets,
    client_sees,
    client_sends,
    client_stalls,
    dial_fails,
    dials,
    evicted,
    holds,
    later,
    logs_nothing,
    records,
    refuses,
    reloads,
    stopped,
    target_ends,
    target_gets,
    target_resets,
    target_sees,
    target_sends,
)

HOST = "192.0.2.1"
HEAD = asking(f"{HOST}:22")
WRONG = asking(f"{HOST}:22", token="wrong")
CONNECT = f"CONNECT {HOST}:22 HTTP/1.1\r\nProxy-Authorization: Bearer {TOKEN}\r\n\r\n".encode()
ALICE = Token("alice", digest(TOKEN))
BOB = Token("bob", digest("another"))


def opened(playbook: Playbook, head: bytes = HEAD, status: int = 101) -> Playbook:
    """The steps that open a tunnel."""
    return (
        playbook
        >> client_sends(head)
        << holds(tunnels=1)
        << dials(HOST)
        >> accepts()
        << records("opened", target=f"{HOST}:22", dialled=f"{HOST}:22")
        << answers(status)
        << holds(tunnels=1, sessions=1)
    )


PLAYBOOKS = {
    # --- a tunnel ---------------------------------------------------------------------------------
    "a tunnel carries bytes both ways and ends well": opened(Playbook())
    >> client_sends(b"up")
    << target_gets(b"up")
    >> target_sends(b"down")
    << client_gets(b"down")
    >> client_ends()
    << target_sees("eof")
    >> target_sends(b"last")
    << client_gets(b"last")
    << logs_nothing()
    >> target_ends()
    << client_sees("eof")
    << records("ended", reason="closed", bytes_up=2, bytes_down=8),
    "what follows the head is the tunnel's": opened(Playbook(), HEAD + b"SSH-2.0")
    << target_gets(b"SSH-2.0")
    >> target_ends()
    >> client_ends()
    << client_sees("eof")
    << target_sees("eof")
    << records("ended", reason="closed"),
    "CONNECT is a tunnel too, where it is turned on": opened(Playbook(connect=True), CONNECT, 200)
    >> target_ends()
    >> client_ends()
    << client_sees("eof")
    << target_sees("eof")
    << records("ended", reason="closed", transport="connect"),
    "a target that breaks": opened(Playbook())
    >> target_sends(b"half")
    >> target_resets()
    << client_gets(b"half")
    << client_sees("reset")
    << records("ended", reason="target_broke", detail="broke"),
    "a client that breaks": opened(Playbook())
    >> client_resets()
    << target_sees("reset")
    << records("ended", reason="client_broke", detail="broke"),
    "a client that breaks before it can get its 101": Playbook()
    >> client_sends(HEAD)
    << dials(HOST)
    >> client_resets()
    >> accepts()
    << target_sees("reset")
    << records("opened")
    << records("ended", reason="client_broke"),
    "a tunnel that says nothing for the idle timeout": opened(Playbook(limits=Limits(idle_timeout=60)))
    >> later(60)
    << client_sees("reset")
    << target_sees("reset")
    << records("ended", reason="idle", detail="60 s"),
    "a tunnel that has lasted as long as it may": opened(Playbook(limits=Limits(max_session=60)))
    >> later(60)
    << client_sees("reset")
    << target_sees("reset")
    << records("ended", reason="max_session", detail="60 s"),
    "a server that is stopped": opened(Playbook())
    >> stopped()
    << client_sees("reset")
    << target_sees("reset")
    << records("ended", reason="stopped"),
    "a token that is taken away": opened(Playbook(tokens=[ALICE]))
    >> reloads(tokens=[BOB])
    << client_sees("reset")
    << target_sees("reset")
    << records("ended", reason="revoked", token="alice"),
    "a token that is taken away and given back at once": opened(Playbook(tokens=[ALICE]))
    >> reloads(tokens=[BOB])
    >> reloads(tokens=[ALICE])
    << client_sees("reset")
    << target_sees("reset")
    << records("ended", reason="revoked", token="alice"),
    "a token that is asked for from now on": opened(Playbook(tokens=[], destination=parse_destination(f"{HOST}:22")))
    >> reloads(tokens=[BOB])
    << client_sees("reset")
    << target_sees("reset")
    << records("ended", reason="revoked"),
    "a token that has expired by now": opened(Playbook(tokens=[ALICE]))
    >> reloads(tokens=[Token("alice", digest(TOKEN), 1.0)])
    << client_sees("reset")
    << target_sees("reset")
    << records("ended", reason="expired"),
    "a token that is taken away where sessions are kept": opened(Playbook(tokens=[ALICE], keep_sessions=True))
    >> reloads(tokens=[BOB])
    >> client_sends(b"still")
    << target_gets(b"still")
    >> client_ends()
    >> target_ends()
    << client_sees("eof")
    << target_sees("eof")
    << records("ended", reason="closed"),
    "an eviction that comes when the token is accepted already": opened(Playbook())
    >> evicted()
    >> client_ends()
    >> target_ends()
    << client_sees("eof")
    << target_sees("eof")
    << records("ended", reason="closed"),
    # --- a refusal --------------------------------------------------------------------------------
    "a target that refuses": Playbook()
    >> client_sends(HEAD)
    << dials(HOST)
    << holds(tunnels=1)
    >> refuses()
    << records("refused", status=502, error="connection_refused")
    << holds(unauthenticated=1)
    << answers(502, b"connection refused")
    << client_sees("eof")
    >> client_ends(),
    "a target that never answers": Playbook(connect_timeout=5)
    >> client_sends(HEAD)
    << dials(HOST)
    >> later(5)
    << records("refused", status=504, error="connection_timeout")
    << answers(504, b"no answer in 5 s")
    << client_sees("eof")
    >> client_ends(),
    "a dial without a descriptor, and then with one": Playbook()
    >> client_sends(HEAD)
    << dials(HOST)
    >> dial_fails(OSError(24, "Too many open files"))
    >> later(0.1)
    << dials(HOST)
    >> refuses()
    << records("refused", status=502)
    << answers(502)
    << client_sees("eof")
    >> client_ends(),
    "a destination that is closed": Playbook()
    >> client_sends(asking("169.254.169.254:80"))
    << records("refused", status=403)
    << answers(403)
    << client_sees("eof")
    >> client_ends(),
    "a wrong token": Playbook()
    >> client_sends(WRONG)
    << records("authentication_failed", status=401, cause="unknown")
    << answers(401)
    << client_sees("eof")
    >> client_ends(),
    "a token that expired before it came": Playbook(tokens=[Token("alice", digest(TOKEN), 1.0)])
    >> client_sends(HEAD)
    << records("authentication_failed", status=401, cause="expired", token="alice")
    << answers(401)
    << client_sees("eof")
    >> client_ends(),
    "no token by CONNECT": Playbook(connect=True)
    >> client_sends(f"CONNECT {HOST}:22 HTTP/1.1\r\n\r\n".encode())
    << records("refused", status=407)
    << answers(407)
    << client_sees("eof")
    >> client_ends(),
    "a path that is not the server's": Playbook(path="/secret")
    >> client_sends(HEAD)
    << records("refused", status=404)
    << answers(404)
    << client_sees("eof")
    >> client_ends(),
    "no tunnel left": Playbook(limits=Limits(max_tunnels=0))
    >> client_sends(HEAD)
    << records("refused", status=503)
    << answers(503)
    << client_sees("eof")
    >> client_ends(),
    "a request that asks for no upgrade": Playbook()
    >> client_sends(upgrade(f"/?addr={HOST}:22", transport="h2c"))
    << records("refused", status=426)
    << answers(426)
    << client_sees("eof")
    >> client_ends(),
    "what is no HTTP": Playbook()
    >> client_sends(b"SSH-2.0-OpenSSH_9.9\r\n")
    << records("refused", status=400)
    << answers(400)
    << client_sees("eof")
    >> client_ends(),
    "a head that does not end": Playbook()
    >> client_sends(HEAD[:-1])
    >> later(10)
    << records("refused", status=408)
    << answers(408)
    << client_sees("eof")
    >> client_ends(),
    "what is no PROXY header gets no answer": Playbook(proxy_protocol=True)
    >> client_sends(HEAD)
    << records("refused", status=400, error="proxy_configuration_error")
    << client_sees("reset"),
    "a token that is taken away while its target is dialled": Playbook(tokens=[ALICE])
    >> client_sends(HEAD)
    << dials(HOST)
    >> reloads(tokens=[BOB])
    >> accepts()
    << target_sees("reset")
    << records("refused", status=401, token="alice")
    << answers(401)
    << client_sees("eof")
    >> client_ends(),
    "a destination that is closed while it is dialled": Playbook(tokens=[ALICE])
    >> client_sends(HEAD)
    << dials(HOST)
    >> reloads(deny=[parse_rule(f"{HOST}:*")])
    >> accepts()
    << target_sees("reset")
    << records("refused", status=403)
    << answers(403)
    << client_sees("eof")
    >> client_ends(),
    "a destination that fails and is closed while it is dialled": Playbook(tokens=[ALICE])
    >> client_sends(HEAD)
    << dials(HOST)
    >> reloads(tokens=[Token("alice", digest(TOKEN), allow=[parse_rule("elsewhere:22")])])
    >> refuses()
    << records("refused", status=403)
    << answers(403)
    << client_sees("eof")
    >> client_ends(),
    # --- the time after a refusal -----------------------------------------------------------------
    "a refused client that stays": Playbook()
    >> client_sends(HEAD)
    << dials(HOST)
    >> refuses()
    << records("refused", status=502)
    << answers(502)
    << client_sees("eof")
    >> later(0.9)
    << holds(unauthenticated=1)
    >> later(0.2)
    << holds(),
    "a refused client that is evicted": Playbook()
    >> client_sends(HEAD)
    << dials(HOST)
    >> refuses()
    << records("refused", status=502)
    << answers(502)
    << client_sees("eof")
    << holds(unauthenticated=1)
    >> evicted()
    << holds(),
    "a refused client that breaks": Playbook()
    >> client_stalls()
    >> client_sends(WRONG)
    << records("authentication_failed")
    << holds(unauthenticated=1)
    >> client_resets()
    << holds(),
    "a server that is stopped while a refused client reads": Playbook()
    >> client_sends(HEAD)
    << dials(HOST)
    >> refuses()
    << records("refused", status=502)
    << answers(502)
    << client_sees("eof")
    >> stopped()
    << holds(),
    # --- neither a tunnel nor an answer -----------------------------------------------------------
    "a client that leaves without a word": Playbook()
    << holds(unauthenticated=1)
    >> client_ends()
    << client_sees("reset")
    << records("abandoned", reason="client_left"),
    "a client that breaks within its head": Playbook()
    >> client_sends(HEAD[:20])
    >> client_resets()
    << records("abandoned", reason="client_left"),
    "a client that breaks while it waits for its 100": Playbook()
    >> client_stalls()
    >> client_sends(asking(f"{HOST}:22", "Expect: 100-continue"))
    >> client_resets()
    << records("abandoned", reason="client_left"),
    "a client that is evicted while it is silent": Playbook()
    << holds(unauthenticated=1)
    >> evicted()
    << client_sees("reset")
    << records("abandoned", reason="pushed_out"),
    "a PROXY header that does not come": Playbook(proxy_protocol=True)
    >> client_sends(b"PROXY ")
    >> later(10)
    << client_sees("reset")
    << records("abandoned", reason="timed_out", detail="PROXY"),
    "a server that is stopped before the request": Playbook()
    >> client_sends(HEAD[:20])
    >> stopped()
    << client_sees("reset")
    << records("abandoned", reason="stopped"),
    "a server that is stopped during a dial": Playbook()
    >> client_sends(HEAD)
    << dials(HOST)
    << holds(tunnels=1)
    >> stopped()
    << client_sees("reset")
    << records("abandoned", reason="stopped"),
    # --- a bug ------------------------------------------------------------------------------------
    "a bug before the tunnel opens": Playbook()
    >> client_sends(HEAD)
    << dials(HOST)
    >> dial_fails(ZeroDivisionError("a bug"))
    << records("refused", status=500)
    << answers(500)
    << client_sees("eof")
    >> client_ends(),
}


@pytest.mark.parametrize("name", PLAYBOOKS)
async def test_a_connection_lives_as_its_playbook_says(
    name: str, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await PLAYBOOKS[name].run(monkeypatch)


async def test_a_bug_in_an_open_tunnel_ends_it_and_no_answer_is_sent_into_it(
    mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def buggy(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(connection_module, "relay", buggy)
    playbook = (
        Playbook()
        >> client_sends(HEAD)
        << dials(HOST)
        >> accepts()
        << answers(101)
        << client_sees("reset")
        << target_sees("reset")
        << records("opened")
        << records("ended", reason="failed")
    )
    await playbook.run(monkeypatch)
    assert "ZeroDivisionError" in caplog.text
