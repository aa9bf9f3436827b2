"""The man page, in the macros of man(7)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from http2tcp import errors
from http2tcp.command.cli import EXAMPLES, command
from http2tcp.command.exit_status import EXIT_BUG, EXIT_USAGE
from http2tcp.version import __version__
from tests.generate.described import Described

# What groff and mandoc would show as another character, or take for the start of a request.
_CHARACTERS = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", "…": r"\&..."}

_GROUPS = {
    "Server": "Of the server (http2tcp \\-s)",
    "Client": "Of the client (http2tcp \\-c)",
    "Both": "Of both, and of neither",
}

_SYNOPSIS = (
    "http2tcp -s [--token-file FILE] [-d HOST:PORT] [-l [HOST:]PORT] [OPTION]...",
    "http2tcp -c -e URL [--token-file FILE] [-d HOST:PORT] [OPTION]...",
    "http2tcp --ssh-config NAME -e URL [OPTION]...",
    "http2tcp --demo",
)

_DESCRIPTION = (
    "The tunnel is one HTTP/1.1 Upgrade at a location of the web site, such as https://example.com/~http2tcp/. The "
    "client asks for a destination, and the server connects to it, as its own machine sees it, before it answers.",
    "A client without -l, -L and -D carries standard input and output: that is what ssh's ProxyCommand wants. "
    "All words for a person go to standard error, and a failure is one line: the hop that failed, why, and what to do.",
)

_VARIABLES = (
    ("HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY", "The proxy that the client goes through, as curl reads them."),
    ("SSL_CERT_FILE, SSL_CERT_DIR", "Authorities in the place of the system's."),
)

_FILES = (
    ("~/.ssh/config", "Where a ProxyCommand stands. --ssh-config prints a block for it."),
    (
        "/etc/http2tcp/token, ~/.config/http2tcp/token",
        "Where the documentation keeps the token. No file is read that no option names.",
    ),
)

_SEE_ALSO = ("ssh(1)", "ssh_config(5)", "nginx(8)", "haproxy(1)", "socat(1)")


def page(options: Sequence[Described], header: str, date: str) -> str:
    """The page's source. It ends in a newline."""
    return "\n".join([f'.\\" {header}', *_lines(options, date), ""])


def _lines(options: Sequence[Described], date: str) -> Iterator[str]:
    purpose, *description = [" ".join(text.split()) for text in (command.help or "").split("\n\n")]
    yield f'.TH HTTP2TCP 1 "{date}" "http2tcp {__version__}" "User Commands"'
    # Nothing that is to be typed is broken by a hyphen, or stretched.
    yield ".nh"
    yield ".ad l"
    yield ".SH NAME"
    yield rf"http2tcp \- {_text(purpose[0].lower() + purpose[1:].rstrip('.'))}"
    yield ".SH SYNOPSIS"
    yield ".nf"
    for usage in _SYNOPSIS:
        yield _usage(usage)
    yield ".fi"
    yield ".SH DESCRIPTION"
    for number, paragraph in enumerate([*description, *_DESCRIPTION]):
        yield from [".PP"] * (number > 0)
        yield _wrapped(paragraph)
    yield ".SH OPTIONS"
    for group, title in _GROUPS.items():
        yield f".SS {title}"
        for option in options:
            if option.group == group:
                yield ".TP"
                yield _heading(option)
                yield _wrapped(f"{option.help} {_plain(option.more)}".strip())
    yield ".SH ENVIRONMENT"
    without = [option.long for option in options if option.variable is None]
    yield ".TP"
    yield r"\fBHTTP2TCP_\fIOPTION\fR"
    yield _wrapped(
        "Every option can come from a variable with its long name in capitals, such as HTTP2TCP_TOKEN_FILE, but "
        f"{', '.join(without[:-1])} and {without[-1]}. The command line beats it. A flag takes 1 or 0, "
        "and a repeatable option one value a line."
    )
    yield from _table(_VARIABLES)
    yield r".SH EXIT STATUS"
    yield from _table(_exit_status())
    yield ".SH FILES"
    yield from _table(_FILES)
    yield ".SH EXAMPLES"
    yield from _examples()
    yield ".SH SEE ALSO"
    separators = [","] * (len(_SEE_ALSO) - 1) + [""]
    for name, separator in zip(_SEE_ALSO, separators, strict=True):
        title, section = name.rstrip(")").split("(")
        yield f".BR {title} ({section}){separator}"


def _exit_status() -> Iterator[tuple[str, str]]:
    yield "0", "Done."
    yield str(EXIT_BUG), "A bug in http2tcp, or a --demo whose check failed."
    yield str(EXIT_USAGE), "A mistake in the options."
    hops: dict[int, tuple[str, str]] = {errors.ListenError.exit_code: ("", _purpose(errors.ListenError))}
    for kind in below(errors.TunnelError):
        if "exit_code" in vars(kind):
            hops[kind.exit_code] = (f"{kind.hop}: ", _purpose(kind))
    for code, (hop, purpose) in sorted(hops.items()):
        yield str(code), hop + purpose
    yield "130, 143", "A client that was ended by SIGINT or SIGTERM."


def below(kind: type[errors.TunnelError]) -> Iterator[type[errors.TunnelError]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


def _purpose(kind: type[errors.Http2tcpError]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split()).partition(". ")[0].rstrip(".") + "."


def _examples() -> Iterator[str]:
    yield ".nf"
    for example in EXAMPLES:
        yield _text(example)
    yield ".fi"
    yield ".PP"
    yield _text("In ~/.ssh/config:")
    yield ".PP"
    yield ".nf"
    yield ".RS 4"
    yield _text("ProxyCommand http2tcp -c -e https://example.com/~http2tcp/ -d %h:%p")
    yield ".RE"
    yield ".fi"


def _plain(markdown: str) -> str:
    """Without links and without the quotes of code."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", markdown).replace("`", "")


def _table(rows: Sequence[tuple[str, str]] | Iterator[tuple[str, str]]) -> Iterator[str]:
    for term, text in rows:
        yield ".TP"
        yield rf"\fB{_text(term)}\fR"
        yield _wrapped(text)


def _heading(option: Described) -> str:
    names = ", ".join(rf"\fB{_text(name)}\fR" for name in option.names)
    return names if option.value is None else rf"{names} \fI{_text(option.value)}\fR"


def _usage(line: str) -> str:
    """The words that are typed as they are in bold, what stands for a value in italics."""
    words = re.sub(r"(?<![\w-])(-{1,2}[a-z][a-z-]*|http2tcp)", r"<\1>", line)
    words = re.sub(r"\b([A-Z]{3,})\b", r"{\1}", words)
    escaped = _text(words)
    return escaped.translate({ord("<"): r"\fB", ord(">"): r"\fR", ord("{"): r"\fI", ord("}"): r"\fR"})


def _wrapped(text: str) -> str:
    """A paragraph in short lines; at the end of a sentence a line ends, where man makes the gap that it likes."""
    sentences = re.split(r"(?<=[.!?])\s+", text)
    lines = [line for each in sentences for line in textwrap.wrap(each, 78, break_on_hyphens=False)]
    return "\n".join(map(_text, lines))


def _text(text: str) -> str:
    escaped = "".join(_CHARACTERS.get(character, character) for character in text)
    # At a line's start a full stop begins a request.
    return rf"\&{escaped}" if escaped.startswith(".") else escaped
