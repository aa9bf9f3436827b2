"""What a case is, and how (seed, index) becomes one. No I/O, and no chance but the seed's."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from http2tcp.protocol.transport import Transport


class Client(Enum):
    """Who opens the tunnel."""

    #: `http2tcp -c` with pipes, as ssh starts it.
    STDIO = "stdio"
    #: `http2tcp -c -l`, and a local connection to it.
    FORWARDER = "forwarder"
    #: `open_tunnel`, in this process.
    API = "api"
    #: A peer made by hand that speaks capsules.
    CAPSULES = "capsules"
    #: A peer made by hand that speaks WebSocket without capsules, as websocat does.
    WEBSOCKET = "websocket"
    #: A peer made by hand that speaks raw bytes, as nc does.
    RAW = "raw"


class Server(Enum):
    """The kind of server; one process of each kind serves all cases."""

    PLAIN = "plain"
    TLS = "tls"
    PORTABLE = "portable"
    RATE = "rate"
    IDLE = "idle"
    #: The plain one, behind a real nginx with TLS.
    NGINX = "nginx"


class Order(Enum):
    """Who ends first, and what waits for that."""

    #: Each side ends as soon as it has sent all.
    INDEPENDENT = "independent"
    #: The client sends and ends; the target ends once it has seen that.
    CLIENT_FIRST = "client first"
    #: The target sends and ends; the client ends once it has seen that.
    TARGET_FIRST = "target first"
    #: A request and a reply: the target begins only after the client's end.
    REPLY = "reply"
    #: The client begins only after the target's end.
    LAST_WORDS = "last words"
    CLIENT_BREAKS = "client breaks"
    TARGET_BREAKS = "target breaks"


class Begin(Enum):
    """When a side begins to send."""

    AT_ONCE = "at once"
    AFTER_PEER = "after the peer's end"


class Finish(Enum):
    """How a side's sending ends."""

    AT_ONCE = "at once"
    AFTER_PEER = "after the peer's end"
    #: By a reset, a killed process, or the nearest thing that the client has.
    BREAK = "break"
    #: A client on stdio whose program closes both pipes, as ssh does when it leaves.
    LEAVE = "leave"


class Cut(Enum):
    """How the network between the ends cuts a connection."""

    RST = "rst"
    FIN = "fin"


class Way(Enum):
    """A direction through the network between the ends."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of a sender: for so many seconds, after so many bytes."""

    at: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one side does. Sizes are in bytes, times in seconds."""

    size: int
    #: How much it sends at a time.
    piece: int
    begin: Begin = Begin.AT_ONCE
    finish: Finish = Finish.AT_ONCE
    #: What it sends before it breaks or leaves; `size` otherwise.
    breaks_at: int = 0
    pauses: tuple[Pause, ...] = ()
    #: How long it reads nothing, from its first moment on.
    nap: float = 0.0

    @property
    def patience(self) -> float:
        """The sum of its pauses, in seconds."""
        return self.nap + sum(pause.seconds for pause in self.pauses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What happens to a connection on its way. Offsets count the bytes on the wire in one direction."""

    #: How much is passed on at a time; None: as it comes.
    piece: int | None = None
    #: Only so many bytes are passed in such pieces; the rest as it comes.
    shaped: int = 0
    #: How long each piece takes, in seconds.
    delay: float = 0.0
    cut: Cut | None = None
    #: The offset at which it flips a bit.
    flips: bool = False
    #: Where it cuts or flips, and in which direction.
    at: int = 0
    way: Way = Way.UP

    @property
    def strikes(self) -> bool:
        """Whether it does more than slow the connection down."""
        return self.cut is not None or self.flips

    def __str__(self) -> str:
        words = []
        if self.piece is not None:
            words.append(f"{self.shaped} B in pieces of {self.piece} B")
        if self.delay:
            words.append(f"{1000 * self.delay:g} ms a piece")
        if self.strikes:
            what = "a bit flipped" if self.cut is None else f"cut by {self.cut.value}"
            words.append(f"{what} at {self.at} {self.way.value}")
        return ", ".join(words) or "clear"


CLEAR = Weather()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One tunnel."""

    seed: int
    index: int
    client: Client
    transport: Transport
    server: Server
    order: Order
    up: Side
    down: Side
    #: Between the client and what it connects to.
    near: Weather = CLEAR
    #: Between nginx and the server.
    far: Weather = CLEAR
    #: The client moves bytes as on systems that are not Linux.
    portable: bool = False
    #: A peer made by hand confirms, as http2tcp's own client does.
    confirms: bool = False
    #: For what peers made by hand vary on the wire.
    whim: int = 0

    @property
    def tls(self) -> bool:
        """Whether the client's connection is under TLS."""
        return self.server in (Server.TLS, Server.NGINX)

    @property
    def capsules(self) -> bool:
        """Whether the tunnel's bytes are in capsules."""
        return not self.transport.raw and self.client is not Client.WEBSOCKET

    @property
    def tells_client_end(self) -> bool:
        """Whether the target sees the client's EOF while it can still send."""
        return not (self.transport.raw and self.tls)

    @property
    def weathers(self) -> tuple[Weather, Weather]:
        """The weather of all legs."""
        return self.near, self.far

    def __str__(self) -> str:
        words = [self.client.value, self.transport.value, self.server.value, self.order.value]
        words += ["portable"] * self.portable + ["confirms"] * self.confirms
        for name, side in (("up", self.up), ("down", self.down)):
            told = [f"{side.size} B by {side.piece}", f"begins {side.begin.value}", f"ends {side.finish.value}"]
            if side.finish in (Finish.BREAK, Finish.LEAVE):
                told.append(f"at {side.breaks_at}")
            told += [f"stalls {pause.seconds:g} s at {pause.at}" for pause in side.pauses]
            told += [f"reads after {side.nap:g} s"] if side.nap else []
            words.append(f"{name}: {', '.join(told)}")
        words += [f"{name}: {each}" for name, each in (("near", self.near), ("far", self.far)) if each != CLEAR]
        return "; ".join(words)


_TRANSPORTS = {
    Client.STDIO: tuple(Transport),
    Client.FORWARDER: tuple(Transport),
    Client.API: tuple(Transport),
    Client.CAPSULES: (Transport.CONNECT_TCP, Transport.WEBSOCKET),
    Client.WEBSOCKET: (Transport.WEBSOCKET,),
    Client.RAW: (Transport.TCP, Transport.HTTP2TCP),
}
#: How often each comes; processes take a quarter of a second of CPU time each.
_CLIENTS = {
    Client.STDIO: 24,
    Client.FORWARDER: 10,
    Client.API: 22,
    Client.CAPSULES: 18,
    Client.WEBSOCKET: 12,
    Client.RAW: 14,
}
_SERVERS = {
    Server.PLAIN: 16,
    Server.TLS: 24,
    Server.PORTABLE: 14,
    Server.RATE: 9,
    Server.IDLE: 9,
    Server.NGINX: 28,
}
_ORDERS = {
    Order.INDEPENDENT: 18,
    Order.CLIENT_FIRST: 16,
    Order.TARGET_FIRST: 16,
    Order.REPLY: 14,
    Order.LAST_WORDS: 12,
    Order.CLIENT_BREAKS: 12,
    Order.TARGET_BREAKS: 12,
}
_SIZES = ((0, 0, 10), (1, 100, 25), (101, 65536, 30), (65537, 1_000_000, 25), (1_000_001, 3_000_000, 10))
_PIECES = (1, 100, 1400, 16 * 1024, 64 * 1024, 256 * 1024)
#: How many pieces to send at most: more would cost time and show nothing new.
_MOST_PIECES = 300
#: Stalls are well below or well above each of the product's own time-outs: 0.5, 3 and 5 s.
_SHORT, _LONG = (0.05, 1.2), (6.5, 7.5)
_SLOW_READER = 11.0
#: How often a side pauses. A pause costs no CPU, but the case keeps its place meanwhile.
_SELDOM, _OFTEN = 0.03, 0.2
#: A TLS handshake and the heads are in the first few thousand bytes.
_EARLY = 6000

_Chance = random.Random
_T = TypeVar("_T")


def derive(seed: int, index: int) -> Case:
    """The case of this seed and index, the same on every machine."""
    chance = random.Random(f"http2tcp campaign {seed} {index}")
    client = _chosen(chance, _CLIENTS)
    transport = chance.choice(_TRANSPORTS[client])
    server = _chosen(chance, _SERVERS)
    order = _chosen(chance, _ORDERS)
    up, down = _sides(chance, client, order)
    near = _weather(chance, up.size, down.size, flips=server in (Server.TLS, Server.NGINX))
    far = CLEAR
    if server is Server.NGINX and chance.random() < 0.3:
        near, far = CLEAR, _weather(chance, up.size, down.size, flips=False)
    return Case(
        seed=seed,
        index=index,
        client=client,
        transport=transport,
        server=server,
        order=order,
        up=up,
        down=down,
        near=near,
        far=far,
        portable=client in (Client.STDIO, Client.FORWARDER) and chance.random() < 0.25,
        confirms=client is Client.CAPSULES and chance.random() < 0.7,
        whim=chance.getrandbits(32),
    )


def _chosen(chance: _Chance, weights: dict[_T, int]) -> _T:
    return chance.choices(list(weights), list(weights.values()))[0]


def _sides(chance: _Chance, client: Client, order: Order) -> tuple[Side, Side]:
    begins = {
        Order.REPLY: (Begin.AT_ONCE, Begin.AFTER_PEER),
        Order.LAST_WORDS: (Begin.AFTER_PEER, Begin.AT_ONCE),
    }.get(order, (Begin.AT_ONCE, Begin.AT_ONCE))
    client_leaves = Finish.LEAVE if client is Client.STDIO and chance.random() < 0.4 else Finish.BREAK
    finishes = {
        Order.CLIENT_FIRST: (Finish.AT_ONCE, Finish.AFTER_PEER),
        Order.TARGET_FIRST: (Finish.AFTER_PEER, Finish.AT_ONCE),
        Order.CLIENT_BREAKS: (client_leaves, chance.choice((Finish.AT_ONCE, Finish.AFTER_PEER))),
        Order.TARGET_BREAKS: (chance.choice((Finish.AT_ONCE, Finish.AFTER_PEER)), Finish.BREAK),
    }.get(order, (Finish.AT_ONCE, Finish.AT_ONCE))
    up = _side(chance, begins[0], finishes[0], slow=_SELDOM)
    # A tunnel that ends too early loses the most if the target sends everything at once and reads late.
    says_all_first = order in (Order.INDEPENDENT, Order.TARGET_FIRST, Order.LAST_WORDS)
    slow = _OFTEN if says_all_first else _SELDOM
    down = _side(chance, begins[1], finishes[1], slow=slow)
    return up, down


def _side(chance: _Chance, begin: Begin, finish: Finish, *, slow: float) -> Side:
    least, most, _ = chance.choices(_SIZES, [weight for *_, weight in _SIZES])[0]
    size = chance.randint(least, most)
    piece = max(chance.choice(_PIECES), size // _MOST_PIECES + 1)
    pauses = []
    if chance.random() < 0.3:
        # Cut at the very end too, when the sender has sent all of its bytes but not its EOF.
        for _ in range(chance.randint(1, 3)):
            at = size if chance.random() < 0.4 else chance.randint(0, size)
            pauses.append(Pause(at, round(chance.uniform(*_SHORT), 3)))
    elif chance.random() < 0.06:
        pauses.append(Pause(chance.choice((0, size // 2, size)), round(chance.uniform(*_LONG), 3)))
    nap = 0.0
    if chance.random() < slow:
        nap = _SLOW_READER
    elif chance.random() < 0.1:
        nap = round(chance.uniform(*_SHORT), 3)
    return Side(
        size=size,
        piece=piece,
        begin=begin,
        finish=finish,
        breaks_at=chance.randint(0, size),
        pauses=tuple(sorted(pauses, key=lambda pause: pause.at)),
        nap=nap,
    )


def _weather(chance: _Chance, up: int, down: int, *, flips: bool) -> Weather:
    kind = chance.choices(("clear", "shaped", "cut", "flipped"), (50, 20, 20, 10 if flips else 0))[0]
    if kind == "clear":
        return CLEAR
    if kind == "shaped":
        piece = chance.choice((1, 7, 100, 1400, 16 * 1024))
        # A loaded machine takes some 30 ms a piece, and the product's own deadlines are 10 s.
        pieces = chance.randint(20, 120 if piece < 1400 else 400)
        return Weather(piece=piece, shaped=piece * pieces, delay=chance.choice((0.0, 0.0, 0.001, 0.005)))
    way = chance.choice(tuple(Way))
    size = up if way is Way.UP else down
    at = chance.randint(0, _EARLY) if chance.random() < 0.4 else chance.randint(0, _EARLY + size)
    if kind == "flipped":
        return Weather(flips=True, at=at, way=way)
    return Weather(cut=chance.choice(tuple(Cut)), at=at, way=way)
