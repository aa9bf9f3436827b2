"""The table of options. Each option has one row, which says everything about it.

The rows define the command line and its help, the environment variables, the keys of the configuration file and the
types of the settings' values. `python -m tests.generate` makes from them the tables of docs/options.md and
docs/configuration.md, examples/http2tcp.toml, the man page and the shells' completions.

To add an option: add a row here, read it in `server_settings` or `client_settings`, and use the setting. To add a
limit: add a field to `Limits` in `http2tcp.server.limits`, and use it. The field describes itself, and its row here is
made from it, since the server also reports its limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import click

from http2tcp.command import values as kinds
from http2tcp.command.values import Kind
from http2tcp.version import __version__

if TYPE_CHECKING:
    from http2tcp.address import Address, Endpoint, IPNetwork
    from http2tcp.client.forwards import Forward
    from http2tcp.protocol.transport import Transport
    from http2tcp.server.rules import Rule

ENV_PREFIX = "HTTP2TCP"
Source = click.core.ParameterSource
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)

# The groups of options in the help, which are also the sections of the example file.
ACTIONS = "What to do"
ENDPOINT_GROUP = "Endpoint"
LISTENING = "Listening"
ACCESS = "Tokens and destinations"
ADDRESSES = "Client addresses"
CERTIFICATES = "Certificates"
PROXIES = "Proxies"
LIMITS = "Limits and times"
MESSAGES = "Log and metrics"
GROUPS = (ACTIONS, ENDPOINT_GROUP, LISTENING, ACCESS, ADDRESSES, CERTIFICATES, PROXIES, LIMITS, MESSAGES)

Mode = Literal["server", "client", "both"]


# Not frozen: every start makes all rows, and an instance of a frozen class takes three times as long to make.
@dataclass(slots=True, eq=False, kw_only=True)
class Option(Generic[V_co]):
    """A row of the table. `V_co` is the type of the option's value."""

    #: All spellings, the long one last.
    names: tuple[str, ...]
    mode: Mode
    group: str
    #: The option's help, in one or two sentences. `help_text` adds the default and "repeatable".
    help: str
    #: The option's value if it is not given.
    default: V_co
    #: The kind of the option's value. None: the option is a flag, without a value.
    kind: Kind[Any] | None = None
    repeatable: bool = False
    #: The default in words, for the help. Empty: the help shows none.
    shown: str = ""
    #: A further paragraph for docs/options.md, in Markdown.
    more: str = ""
    #: Whether the short help shows the option.
    common: bool = False
    #: Whether the option has an environment variable. An action has none: its variable would turn every http2tcp
    #: command into that action.
    from_environment: bool = True
    #: Whether the configuration file may set the option.
    in_file: bool = True
    #: The option's value in examples/http2tcp.toml, in TOML; and (`in_force`) whether that line is active there, not
    #: commented out.
    sample: str = ""
    in_force: bool = False
    #: The comment above that line in the example file, if the help's sentence does not fit there.
    comment: str = ""
    #: Whether the option takes two words: a name, and then a value of `kind`.
    named: bool = False
    #: Whether the value may be left out.
    optional: bool = False

    @property
    def long(self) -> str:
        """The option's long spelling, such as --token-file."""
        return self.names[-1]

    @property
    def key(self) -> str:
        """The option's name in the configuration file, the log and the metrics, such as token_file."""
        return self.names[-1][2:].replace("-", "_")

    @property
    def variable(self) -> str:
        """The name of the option's environment variable."""
        return f"{ENV_PREFIX}_{self.key.upper()}"

    @property
    def value(self) -> str | None:
        """The placeholder for the option's value in the help. None: the option is a flag."""
        if self.kind is None:
            return None
        if self.named:
            return f"NAME {self.kind.name}"
        return f"[{self.kind.name}]" if self.optional else self.kind.name

    @property
    def summary(self) -> str:
        """The help's first sentence, without its full stop."""
        return self.help.partition(". ")[0].removesuffix(".")

    @property
    def help_text(self) -> str:
        """The whole help for a terminal: the sentences, "repeatable" and the default."""
        notes = ["repeatable"] * self.repeatable + [f"default: {self.shown}"] * bool(self.shown)
        return "  ".join([self.help] * bool(self.help) + [f"[{note}]" for note in notes])


# --- server -----------------------------------------------------------------------------------

SERVER: Option[bool] = Option(
    names=("-s", "--server"),
    mode="server",
    group=ACTIONS,
    default=False,
    help="Serve tunnels, behind a front end such as nginx.",
    common=True,
    in_file=False,
)
CONFIG: Option[str | None] = Option(
    names=("--config",),
    mode="server",
    group=ACTIONS,
    kind=kinds.FILE_NAME,
    default=None,
    help="Read this TOML file: named tokens, and every option that is not given elsewhere.",
    more="The command line and the environment beat the file. SIGHUP reads it again. See "
    "[configuration.md](configuration.md).",
    common=True,
    in_file=False,
)
ALLOW: Option[tuple[Rule, ...]] = Option(
    names=("--allow",),
    mode="server",
    group=ACCESS,
    kind=kinds.RULE,
    default=(),
    repeatable=True,
    shown="everything but link-local and metadata addresses",
    help="Let tokens go only there: NAME:PORT, *.NAME:PORT, NETWORK:PORT, unix:/PATH.",
    more="It is for the tokens that have no rules of their own: `bastion:22`, `*.prod.svc:22`, `10.0.0.0/8:5432`, "
    "`unix:/run/x.sock`. See [Rules](configuration.md#rules).",
    sample='["bastion:22"]',
    in_force=True,
    comment="For tokens that have no `allow` of their own. Without any `allow`, a token opens every destination but "
    "link-local and cloud metadata addresses; an empty list opens none.",
)
DENY: Option[tuple[Rule, ...]] = Option(
    names=("--deny",),
    mode="server",
    group=ACCESS,
    kind=kinds.RULE,
    default=(),
    repeatable=True,
    help="Let no token go there, whatever allows it.",
    more="Deny addresses rather than names: a name that is denied has others for the same machine.",
    sample='["10.20.9.0/24:*", "127.0.0.0/8:*", "[::1]:*"]',
    in_force=True,
    comment="For every token, whatever allows it. Deny addresses rather than names: a name that is denied has others "
    "that lead to the same place.",
)
PATH: Option[str | None] = Option(
    names=("--path",),
    mode="server",
    group=LISTENING,
    kind=kinds.PATH,
    default=None,
    shown="every path",
    help="Answer at this path only; 404 elsewhere.",
    more="The path is compared as it is sent; only needless escapes are undone first (`%7E` equals `~`, but `%2F` does "
    "not equal `/`).",
    sample='"/~http2tcp/"',
    in_force=True,
    comment="Answer at this path only, as in the front end's location; 404 elsewhere.",
)
ALLOW_ORIGIN: Option[tuple[str, ...]] = Option(
    names=("--allow-origin",),
    mode="server",
    group=LISTENING,
    kind=kinds.ORIGIN,
    default=(),
    repeatable=True,
    help="Let this site's web pages open tunnels, as in https://example.com.",
    more="The value is an origin as browsers send it, such as `https://example.com` or `http://localhost:8080`; case "
    "counts. Every other request with an `Origin` field gets 403. See "
    "[security.md](security.md#who-may-open-a-tunnel).",
    sample='["https://example.com"]',
    comment="The sites whose web pages may open tunnels. Without this line, no web page may.",
)
CONNECT: Option[bool] = Option(
    names=("--connect",),
    mode="server",
    group=LISTENING,
    default=False,
    help="Take CONNECT too, for nc -X connect, corkscrew or curl -p.",
    more="With CONNECT, programs that know only HTTP proxies reach a target: "
    "[without-a-client.md](how-to/without-a-client.md). `--path` does not apply to CONNECT, which has no path.",
    sample="false",
)
TLS_CERT: Option[str | None] = Option(
    names=("--tls-cert",),
    mode="server",
    group=LISTENING,
    kind=kinds.FILE,
    default=None,
    help="Serve https without a front end, with this certificate and its chain (PEM).",
    more="The server's certificate comes first in the file, then the certificates that lead to its authority. Without "
    "this option the server speaks plain http, to a front end. SIGHUP reads the file again. See "
    "[Without a front end](deploy/without-a-front-end.md).",
    sample='"fullchain.pem"',
    comment="Serve https without a front end, with this certificate and its chain (PEM). Names of files are relative "
    "to this file.",
)
TLS_KEY: Option[str | None] = Option(
    names=("--tls-key",),
    mode="server",
    group=LISTENING,
    kind=kinds.FILE,
    default=None,
    help="The key of --tls-cert, without a passphrase, where another file has it.",
    sample='"privkey.pem"',
    comment="The certificate's key, without a passphrase, where another file has it.",
)
ADMIN: Option[Address | None] = Option(
    names=("--admin",),
    mode="server",
    group=MESSAGES,
    kind=kinds.LISTEN,
    default=None,
    help="Serve /metrics, /healthz and /readyz here. Unauthenticated: do not expose it.",
    more="It asks for no token: keep it on loopback, on a Unix socket (`unix:/run/http2tcp/admin.sock`), or in a "
    "network of your own. The address for tunnels never serves these pages. See [metrics.md](metrics.md).",
    sample='"127.0.0.1:9090"',
    comment="Serve /metrics, /healthz and /readyz here. Unauthenticated: do not expose it. A change needs a restart.",
)
ADMIN_NAME: Option[tuple[str, ...]] = Option(
    names=("--admin-name",),
    mode="server",
    group=MESSAGES,
    kind=kinds.HOST,
    default=(),
    repeatable=True,
    help="On loopback, answer at --admin to this host name too.",
    more="A request names the host that it is for (`Host`). On loopback, addresses, `localhost` and the name in "
    "`--admin` are always served; any other name is refused, since a web page could point a name of its own at "
    "127.0.0.1. See [metrics.md](metrics.md#who-may-ask).",
    sample='["metrics.internal"]',
    comment="On loopback, /metrics answers to addresses, to localhost and to these names only, so that no web page "
    "can read it.",
)
TRUSTED_PROXY: Option[tuple[IPNetwork | Literal["unix"], ...]] = Option(
    names=("--trusted-proxy",),
    mode="server",
    group=ADDRESSES,
    kind=kinds.NETWORK,
    default=(),
    repeatable=True,
    help="Believe this front end about the client's address: an address, a network, or unix.",
    more="`unix` stands for all connections by a Unix socket. See [client-address.md](client-address.md).",
    sample='["127.0.0.1", "::1"]',
    in_force=True,
    comment='The front ends that are believed about a client\'s address: addresses, networks, or "unix" for '
    "connections by a Unix socket.",
)
FORWARDED_HEADER: Option[str] = Option(
    names=("--forwarded-header",),
    mode="server",
    group=ADDRESSES,
    kind=kinds.FIELD_NAME,
    default="X-Forwarded-For",
    shown="X-Forwarded-For",
    help="The one header field in which front ends name the client.",
    more="Every other field is ignored. `Forwarded` is read as RFC 7239 defines it.",
    sample='"X-Forwarded-For"',
)
PROXY_PROTOCOL: Option[bool] = Option(
    names=("--proxy-protocol",),
    mode="server",
    group=ADDRESSES,
    default=False,
    help="Expect every connection to begin with a PROXY header (v1 or v2) that names the client.",
    more="A connection that begins otherwise is closed.",
    sample="false",
    comment="Every connection begins with a PROXY protocol header (HAProxy's send-proxy-v2), which names the client.",
)
HEAD_TIMEOUT: Option[float] = Option(
    names=("--head-timeout",),
    mode="server",
    group=LIMITS,
    kind=kinds.TIME,
    default=10.0,
    shown="10",
    help="How long a request may take to arrive.",
    more="The time begins when the connection is accepted. After it, the client gets 408.",
    sample="10",
)
CONNECT_TIMEOUT: Option[float] = Option(
    names=("--connect-timeout",),
    mode="server",
    group=LIMITS,
    kind=kinds.TIME,
    default=10.0,
    shown="10",
    help="How long the server may take to reach a target.",
    more="The time includes the look-up of the target's name. After it, the client gets 504. The client itself waits "
    "20 s for the answer.",
    sample="10",
)
GRACE: Option[float] = Option(
    names=("--grace",),
    mode="server",
    group=LIMITS,
    kind=kinds.TIME,
    default=30.0,
    shown="30",
    help="How long open tunnels may go on after SIGTERM.",
    more="SIGINT begins the grace too. A second signal ends the tunnels at once.",
    sample="30",
)
RESUME: Option[float] = Option(
    names=("--resume",),
    mode="server",
    group=LIMITS,
    kind=kinds.TIME_OR_ZERO,
    default=3600.0,
    shown="1h",
    help="How long a client that lost its connection may be away. 0: no tunnel is resumable.",
    more="Tunnels of http2tcp's own clients on `connect-tcp` and `websocket` outlive their connections: the client "
    "reconnects and the tunnel goes on. A client asks for 15 minutes on stdin and stdout and for a minute with `-l`, "
    "`-L` and `-D`; the shorter of the two times counts. See [how-to/survive.md](how-to/survive.md).",
    sample="3600",
)
RESUME_WINDOW: Option[int] = Option(
    names=("--resume-window",),
    mode="server",
    group=LIMITS,
    kind=kinds.SIZE,
    default=4 * 1024 * 1024,
    shown="4M",
    help="Bytes that a tunnel keeps until its client has acknowledged them, 256K to 64M.",
    more="It bounds a tunnel's speed: 4 MiB are 335 Mbit/s at a round trip of 100 ms.",
    sample="4_194_304",
)
RESUME_MEMORY: Option[int] = Option(
    names=("--resume-memory",),
    mode="server",
    group=LIMITS,
    kind=kinds.SIZE,
    default=256 * 1024 * 1024,
    shown="256M",
    help="Bytes that all tunnels together keep for that.",
    more="Tokens share it. A tunnel that can keep no more waits for its client, and loses nothing.",
    sample="268_435_456",
)
MAX_DETACHED: Option[int] = Option(
    names=("--max-detached",),
    mode="server",
    group=LIMITS,
    kind=kinds.COUNT,
    default=1000,
    shown="1000",
    help="How many tunnels may wait for their clients.",
    more="Tunnels count that have waited for two minutes. Beyond the limit, the token that has the most loses the one "
    "that has waited longest.",
    sample="1000",
)
MAX_DETACHED_PER_TOKEN: Option[int] = Option(
    names=("--max-detached-per-token",),
    mode="server",
    group=LIMITS,
    kind=kinds.COUNT,
    default=32,
    shown="32",
    help="Of these, how many of one token.",
    sample="32",
)
NODE: Option[str | None] = Option(
    names=("--node",),
    mode="server",
    group=LISTENING,
    kind=kinds.NODE,
    default=None,
    help="This server's name among several behind one front end: ids of its sessions begin with it.",
    more="The front end can then lead a client that resumes back to the server that has its tunnel. See "
    "[how-to/survive.md](how-to/survive.md#several-servers).",
    sample='"a"',
)
KEEP_SESSIONS: Option[bool] = Option(
    names=("--keep-sessions",),
    mode="server",
    group=ACCESS,
    default=False,
    help="Let open tunnels go on when their token expires or is taken away.",
    more="They go on, too, when a reload asks for a token for the first time. A tunnel that was being opened while the "
    "rules changed is opened.",
    sample="false",
)
LOG_FORMAT: Option[Literal["text", "json"]] = Option(
    names=("--log-format",),
    mode="server",
    group=MESSAGES,
    kind=kinds.LOG_FORMAT,
    default="text",
    shown="text",
    help="Log lines of text, or json: one object a line.",
    more="See [log.md](log.md).",
    sample='"text"',
    comment='"text", or "json": one object a line. A change needs a restart.',
)
LOG_FILE: Option[str | None] = Option(
    names=("--log-file",),
    mode="server",
    group=MESSAGES,
    kind=kinds.FILE_NAME,
    default=None,
    shown="stderr",
    help="Log to this file; it may be rotated.",
    more="The file may be renamed or truncated at any time, as logrotate does: [log.md](log.md#rotation). What keeps "
    "the server from starting is still said on stderr.",
    sample='"http2tcp.log"',
    comment="Without this line, the log goes to stderr, which is the journal under systemd. A change needs a restart.",
)
NEW_TOKEN: Option[str | None] = Option(
    names=("--new-token",),
    mode="server",
    group=ACTIONS,
    kind=kinds.NAME,
    default=None,
    optional=True,
    help="Print a new token and the lines of --config that let it in, and end.",
    more="The token is shown this once. See [Tokens](configuration.md#tokens).",
    from_environment=False,
    in_file=False,
)
AS: Option[tuple[str, Address] | None] = Option(
    names=("--as",),
    mode="server",
    group=ACTIONS,
    kind=kinds.DESTINATION,
    named=True,
    default=None,
    help="With --check: say whether the token of this name may go there, and why.",
    more="`-` is the token without a name. See [Checking it](configuration.md#checking-it).",
    from_environment=False,
    in_file=False,
)

# --- client -----------------------------------------------------------------------------------

CLIENT: Option[bool] = Option(
    names=("-c", "--client"),
    mode="client",
    group=ACTIONS,
    default=False,
    help="Open a tunnel, for stdin and stdout or from -l, -L or -D.",
    common=True,
)
ENDPOINT: Option[Endpoint | None] = Option(
    names=("-e", "--endpoint"),
    mode="client",
    group=ENDPOINT_GROUP,
    kind=kinds.ENDPOINT,
    default=None,
    help="The server's location, as in https://example.com/~http2tcp/.",
    more="A client needs it. See [Endpoints](#endpoints).",
    common=True,
)
TRANSPORT: Option[Transport | None] = Option(
    names=("--transport",),
    mode="client",
    group=ENDPOINT_GROUP,
    kind=kinds.TRANSPORT,
    default=None,
    shown=kinds.AUTO,
    help="auto (the first that gets through), connect-tcp, tcp, http2tcp/1.0, or websocket.",
    more="`auto` tries the others in this order. Where the first one does not get through, it names the one that "
    "does. See [wire.md](wire.md#transports).",
)
HEADER: Option[tuple[tuple[tuple[str, str], ...], ...]] = Option(
    names=("-H", "--header"),
    mode="client",
    group=ENDPOINT_GROUP,
    kind=kinds.HEADER,
    default=(),
    repeatable=True,
    help="Add a header field; @FILE reads one a line.",
    more="`-H @FILE` keeps secrets out of `ps`. A field replaces one of the same name, `Host` and `User-Agent` "
    "included; the fields of the upgrade itself cannot be set.",
)
USER_AGENT: Option[str | None] = Option(
    names=("--user-agent",),
    mode="client",
    group=ENDPOINT_GROUP,
    kind=kinds.TEXT,
    default=None,
    shown=f"http2tcp/{__version__}",
    help="The User-Agent field.",
)
CA_FILE: Option[str | None] = Option(
    names=("--ca-file",),
    mode="client",
    group=CERTIFICATES,
    kind=kinds.FILE,
    default=None,
    shown="the system's",
    help="Verify the site against these authorities (PEM).",
)
CLIENT_CERT: Option[str | None] = Option(
    names=("--client-cert",),
    mode="client",
    group=CERTIFICATES,
    kind=kinds.FILE,
    default=None,
    help="This client's own certificate (PEM), for a site that asks for one.",
)
CLIENT_KEY: Option[str | None] = Option(
    names=("--client-key",),
    mode="client",
    group=CERTIFICATES,
    kind=kinds.FILE,
    default=None,
    help="The key of --client-cert, where another file has it.",
)
TLS_SERVER_NAME: Option[str | None] = Option(
    names=("--tls-server-name",),
    mode="client",
    group=CERTIFICATES,
    kind=kinds.HOST,
    default=None,
    shown="the endpoint's host",
    help="Ask for this name in TLS (SNI), and verify the certificate for it.",
)
PIN_SHA256: Option[tuple[bytes, ...]] = Option(
    names=("--pin-sha256",),
    mode="client",
    group=CERTIFICATES,
    kind=kinds.PIN,
    default=(),
    repeatable=True,
    help="Require this SHA-256 of the site's public key, besides a valid certificate.",
    more="The value is `sha256//BASE64` as curl writes it, the base64 alone, or 64 hexadecimal digits. Of several "
    "pins, one has to match.",
)
LOCAL_FORWARD: Option[tuple[Forward, ...]] = Option(
    names=("-L", "--local-forward"),
    mode="client",
    group=LISTENING,
    kind=kinds.LOCAL_FORWARD,
    default=(),
    repeatable=True,
    help="Listen, and tunnel each connection there, as ssh -L does.",
    more="See [Forwarding](#forwarding).",
    common=True,
)
DYNAMIC_FORWARD: Option[tuple[Forward, ...]] = Option(
    names=("-D", "--dynamic-forward"),
    mode="client",
    group=LISTENING,
    kind=kinds.DYNAMIC_FORWARD,
    default=(),
    repeatable=True,
    help="Listen as a SOCKS5 proxy; the server looks names up.",
    more="It does what ssh's `-D` does. See [Forwarding](#forwarding).",
    common=True,
)
PROXY: Option[str | None] = Option(
    names=("--proxy",),
    mode="client",
    group=PROXIES,
    kind=kinds.PROXY_URL,
    default=None,
    shown="HTTPS_PROXY and its like",
    help="Go through this http, https, socks5 or socks5h proxy; @FILE reads it.",
    more="A login stands before the host: `http://USER:PASSWORD@proxy:3128`. `--proxy @FILE` reads the URL from a "
    "file's first line, which keeps the password out of `ps`. See [Proxies](#proxies).",
)
NO_PROXY: Option[bool] = Option(
    names=("--no-proxy",),
    mode="client",
    group=PROXIES,
    default=False,
    help="Use no proxy, even if HTTPS_PROXY or its like names one.",
)
NO_RESUME: Option[bool] = Option(
    names=("--no-resume",),
    mode="client",
    group=ENDPOINT_GROUP,
    default=False,
    help="End when the connection is lost; do not reconnect and go on.",
)
FDPASS: Option[bool] = Option(
    names=("--fdpass",),
    mode="client",
    group=ENDPOINT_GROUP,
    default=False,
    help="For ssh's ProxyUseFdpass: hand ssh the connection and leave. http only.",
    more="ssh then reads and writes the connection itself, so it has to be plain http and raw bytes: `auto` is `tcp`.",
)
INSECURE: Option[bool] = Option(
    names=("--insecure",),
    mode="client",
    group=CERTIFICATES,
    default=False,
    help="Trust any certificate.",
    more="It warns each time. Pins are still checked.",
)
JSON: Option[bool] = Option(
    names=("--json",),
    mode="client",
    group=ACTIONS,
    default=False,
    help="With --check: print one JSON document.",
    from_environment=False,
)
SSH_CONFIG: Option[str | None] = Option(
    names=("--ssh-config",),
    mode="client",
    group=ACTIONS,
    kind=kinds.NAME,
    default=None,
    help="Print these options as a block, Host NAME, for ~/.ssh/config, and end.",
    more="See [ssh-config.md](ssh-config.md).",
    common=True,
    from_environment=False,
)

# --- both -------------------------------------------------------------------------------------

TOKEN: Option[str | None] = Option(
    names=("-t", "--token"),
    mode="both",
    group=ACCESS,
    kind=kinds.SECRET,
    default=None,
    help="The shared secret. It shows in ps; a file does not.",
    in_file=False,
)
TOKEN_FILE: Option[str | None] = Option(
    names=("--token-file",),
    mode="both",
    group=ACCESS,
    kind=kinds.FILE_NAME,
    default=None,
    help="Read the token from a file's first line.",
    more="A file that everybody can read earns a warning.",
    common=True,
    sample='"token"',
    comment="A token without a name, in a file of its own, beside those below.",
)
DESTINATION: Option[Address | None] = Option(
    names=("-d", "--destination"),
    mode="both",
    group=ACCESS,
    kind=kinds.DESTINATION,
    default=None,
    help="Where the tunnel goes. Server: where it goes if the client names nothing.",
    more="The server looks the name up: `localhost` is the server's own machine. A client without `-d` gets the "
    "server's default destination. A server without a token lets everybody go to its `-d`, and nowhere else.",
    common=True,
    sample='"bastion:22"',
    comment="Where a tunnel goes when the client names no destination.",
)
LISTEN: Option[tuple[Address, ...]] = Option(
    names=("-l", "--listen"),
    mode="both",
    group=LISTENING,
    kind=kinds.LISTEN,
    default=(),
    repeatable=True,
    shown="server: 127.0.0.1:12345",
    help="Where to listen. Client: in place of stdin and stdout, for -d.",
    more="A server may listen at several addresses. A client takes one `-l`; `-L` is for more of them.",
    common=True,
    sample='["127.0.0.1:12345"]',
    in_force=True,
    comment='For the front end. A Unix socket is "unix:/run/http2tcp/http2tcp.sock". A change needs a restart.',
)
KEEPALIVE: Option[float] = Option(
    names=("--keepalive",),
    mode="both",
    group=LIMITS,
    kind=kinds.KEEPALIVE,
    default=25.0,
    shown="25",
    help="Break silence this often, except on raw transports.",
    more="On `connect-tcp` and `websocket`, a few bytes are sent after this many seconds of silence, so that no proxy "
    "on the way takes the tunnel for dead. Each side's own value counts for what it sends. 1 s at least.",
    sample="25",
)
VERBOSE: Option[bool] = Option(
    names=("-v", "--verbose"),
    mode="both",
    group=MESSAGES,
    default=False,
    help="Say more.",
    in_file=False,
)
QUIET: Option[bool] = Option(
    names=("-q", "--quiet"),
    mode="both",
    group=MESSAGES,
    default=False,
    help="Say errors only.",
    more="It beats `-v`.",
    in_file=False,
)
CHECK: Option[bool] = Option(
    names=("--check",),
    mode="both",
    group=ACTIONS,
    default=False,
    help="Client: say how far each hop of the way works. Server: show its policy. And end.",
    more="A client walks the way once, listens on nothing, and ends with the exit code of the failure: "
    "[check.md](check.md). A server reads all settings as it does when it starts, shows what they amount to, and ends: "
    "[configuration.md](configuration.md#checking-it).",
    common=True,
    from_environment=False,
    in_file=False,
)
DEMO: Option[bool] = Option(
    names=("--demo",),
    mode="both",
    group=ACTIONS,
    default=False,
    help="Serve, tunnel and check on loopback, and end.",
    more="It also shows what mistakes look like. It exits with 0 if all was as it should be.",
    from_environment=False,
    in_file=False,
)
VERSION: Option[bool] = Option(
    names=("--version",),
    mode="both",
    group=ACTIONS,
    default=False,
    help="Show the version and end.",
    from_environment=False,
    in_file=False,
)
HELP: Option[bool] = Option(
    names=("-h", "--help"),
    mode="both",
    group=ACTIONS,
    default=False,
    help="Show this page and end.",
    more="With `-s` or `-c`: all options of that mode.",
    from_environment=False,
    in_file=False,
)

_ROWS = tuple(row for row in globals().values() if isinstance(row, Option))
# The index in the table at which to insert the rows of the limits.
_AFTER_LIMITS = _ROWS.index(KEEP_SESSIONS)


def rows() -> tuple[Option[Any], ...]:
    """Return all rows, in the order of the documentation."""
    return (*_ROWS[:_AFTER_LIMITS], *_limits(), *_ROWS[_AFTER_LIMITS:])


def client_rows() -> tuple[Option[Any], ...]:
    """Return the rows that a client may use, without loading any module of the server."""
    return tuple(row for row in _ROWS if row.mode != "server")


_LIMIT_KINDS: dict[str, Kind[Any]] = {"count": kinds.COUNT, "time": kinds.TIME, "rate": kinds.BYTES}


def _limits() -> list[Option[float | None]]:
    """Make a row for each field of `Limits`. The row has no default: the field's own applies if nothing is given."""
    from http2tcp.server.limits import described_limits

    return [
        Option(
            names=(f"--{name.replace('_', '-')}",),
            mode="server",
            group=LIMITS,
            kind=_LIMIT_KINDS[limit.kind],
            default=None,
            shown=limit.shown or f"{default:g}",
            help=limit.help,
            more=limit.more,
            sample=limit.sample or f"{default:g}",
            comment=limit.comment,
        )
        for name, default, limit in described_limits()
    ]


# --- what was given -----------------------------------------------------------------------------


class Given:
    """The value of each option, with its type: `given[GRACE]` is a float."""

    def __init__(self, context: click.Context, file: Mapping[str, Any] | None = None) -> None:
        """`file` has values of the configuration file, by their keys, for options that are not given elsewhere."""
        self._context = context
        self._file = file or {}

    def __getitem__(self, option: Option[V]) -> V:
        value: V = self.by_key(option.key, option.default)
        return value

    def by_key(self, key: str, default: Any = None) -> Any:
        """Return the value of the option whose key is `key`."""
        # An option of the other mode is not among click's parameters: it has the default.
        return self._file[key] if key in self._file else self._context.params.get(key, default)

    def in_file(self, option: Option[Any]) -> bool:
        """Return whether the option's value comes from the configuration file."""
        return option.key in self._file

    def source(self, option: Option[Any]) -> click.core.ParameterSource:
        """Return where the option's value comes from. A value of the configuration file counts as a default."""
        return self._context.get_parameter_source(option.key) or Source.DEFAULT

    def on_command_line(self, option: Option[Any]) -> bool:
        """Return whether the option was given on the command line, not by a variable."""
        return self.source(option) is Source.COMMANDLINE

    def anywhere(self, option: Option[Any]) -> bool:
        """Return whether the option was given on the command line or by a variable."""
        return self.source(option) in (Source.COMMANDLINE, Source.ENVIRONMENT)

    def texts(self, option: Option[Any]) -> list[Any]:
        """Return each text that was given for the option, for --ssh-config. For a flag, return its value in a list."""
        return list(self._context.meta.get(kinds.text_of(option.key), [self[option]]))

    def with_file(self, values: Mapping[str, Any]) -> Given:
        """Return the same options, completed by the file's `values` for options that are not given elsewhere."""
        return Given(self._context, values)
