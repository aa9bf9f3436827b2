"""`--proxy`, `--no-proxy` and the variables: what comes of them, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from http2tcp.address import parse_endpoint
from http2tcp.client.settings import environment_proxy
from tests.support.client_process import client, close_stdin, ended, one_line
from tests.support.fake_proxy import fake_proxy
from tests.support.loopback import TOKEN, closed_port, greet_and_close, read_all, served, target
from tests.support.processes import environment

from .conftest import Run, complaint

CLIENT = ("-c", "-e", "https://example.com/")
PROXY = "http://us3r:s3cret@proxy:3128"


def shown(proxy: object) -> str | None:
    return None if proxy is None else str(proxy)


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ((), {}, None),
        (("--proxy", PROXY), {}, "http://proxy:3128 from --proxy"),
        ((), {"HTTP2TCP_PROXY": PROXY}, "http://proxy:3128 from HTTP2TCP_PROXY"),
        ((), {"HTTPS_PROXY": PROXY}, "http://proxy:3128 from HTTPS_PROXY"),
        ((), {"HTTP_PROXY": PROXY}, None),
        # The nearer word wins: the command line, our own variable, everybody's variable.
        (("--proxy", "socks5h://p"), {"HTTP2TCP_PROXY": PROXY}, "socks5h://p:1080 from --proxy"),
        ((), {"HTTP2TCP_PROXY": "socks5h://p", "HTTPS_PROXY": PROXY}, "socks5h://p:1080 from HTTP2TCP_PROXY"),
        (("--proxy", "socks5h://p"), {"NO_PROXY": "*"}, "socks5h://p:1080 from --proxy"),
        (("--proxy", "socks5h://p"), {"HTTP2TCP_NO_PROXY": "1"}, "socks5h://p:1080 from --proxy"),
        (("--no-proxy",), {"HTTP2TCP_PROXY": PROXY}, None),
        (("--no-proxy",), {"HTTPS_PROXY": PROXY}, None),
        ((), {"HTTP2TCP_NO_PROXY": "1", "HTTPS_PROXY": PROXY}, None),
        ((), {"HTTP2TCP_NO_PROXY": "0", "HTTPS_PROXY": PROXY}, "http://proxy:3128 from HTTPS_PROXY"),
        ((), {"HTTP2TCP_PROXY": "", "HTTPS_PROXY": PROXY}, "http://proxy:3128 from HTTPS_PROXY"),
        ((), {"NO_PROXY": "example.com", "HTTPS_PROXY": PROXY}, None),
    ],
)
def test_the_nearest_word_about_a_proxy_counts(
    http2tcp: Run, arguments: tuple[str, ...], variables: dict[str, str], expected: str | None
) -> None:
    proxy = http2tcp(*CLIENT, *arguments, **variables).client.proxy
    assert (None if proxy is None else f"{proxy} from {proxy.source}") == expected


def test_an_explicit_proxy_is_used_for_a_loopback_endpoint_too(http2tcp: Run) -> None:
    client = http2tcp("-c", "-e", "http://localhost:1/", "--proxy", PROXY, HTTP_PROXY="http://other").client
    assert shown(client.proxy) == "http://proxy:3128"
    assert http2tcp("-c", "-e", "http://localhost:1/", HTTP_PROXY=PROXY).client.proxy is None


def test_a_proxy_can_stand_in_a_file(http2tcp: Run, tmp_path: Path) -> None:
    file = tmp_path / "proxy"
    file.touch(0o600)
    file.write_text(f"  {PROXY}\r\nanother line\n")
    ran = http2tcp(*CLIENT, "--proxy", f"@{file}")
    assert (ran.err, shown(ran.client.proxy)) == ("", "http://proxy:3128")
    assert ran.client.proxy is not None
    assert ran.client.proxy.credentials == (b"us3r", b"s3cret")
    assert shown(http2tcp(*CLIENT, HTTP2TCP_PROXY=f"@{file}").client.proxy) == "http://proxy:3128"


def test_a_proxy_file_that_everybody_can_read_earns_a_warning_unless_quiet(http2tcp: Run, tmp_path: Path) -> None:
    file = tmp_path / "proxy"
    file.write_text(PROXY)
    file.chmod(0o644)
    ran = http2tcp(*CLIENT, "--proxy", f"@{file}")
    assert ran.err == f"http2tcp: {file} can be read by everybody on this machine: chmod o-r it\n"
    assert http2tcp(*CLIENT, "-q", "--proxy", f"@{file}").err == ""


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        (("--proxy", PROXY, "--no-proxy"), {}, "--proxy and --no-proxy are at odds"),
        ((), {"HTTP2TCP_PROXY": PROXY, "HTTP2TCP_NO_PROXY": "1"}, "--proxy and --no-proxy are at odds"),
        (("--proxy", ""), {}, "--proxy: the URL names no host"),
        (("--proxy", "ftp://us3r:s3cret@h"), {}, "--proxy: a proxy's URL begins with http://"),
        (("--proxy", "socks4://us3r:s3cret@h"), {}, "socks5://"),
        (("--proxy", "http://us3r:s3cret@h/path"), {}, "%2F"),
        (("--proxy", "http://us3r:s3cret @h"), {}, "blank"),
        (("--proxy", "@"), {}, "the proxy file has no name"),
        (("--proxy", "@/nowhere"), {}, "cannot read the proxy file /nowhere: no such file"),
        ((), {"HTTP2TCP_PROXY": "ftp://us3r:s3cret@h"}, "HTTP2TCP_PROXY: "),
        ((), {"HTTPS_PROXY": "ftp://us3r:s3cret@h"}, "HTTPS_PROXY: "),
        ((), {"all_proxy": "socks4://us3r:s3cret@h"}, "all_proxy: "),
    ],
)
def test_a_mistake_about_a_proxy_is_one_sentence_without_the_password(
    http2tcp: Run, arguments: tuple[str, ...], variables: dict[str, str], expected: str
) -> None:
    sentence = complaint(http2tcp(*CLIENT, *arguments, **variables))
    assert expected in sentence
    assert "s3cret" not in sentence


def test_a_server_does_not_care_about_proxies(http2tcp: Run) -> None:
    assert http2tcp("-s", "-t", "x", HTTPS_PROXY="ftp://h", HTTP2TCP_PROXY="nonsense://").started


def test_fdpass_through_a_session_of_ours_is_refused(http2tcp: Run) -> None:
    fdpass = ("-c", "-e", "http://example.com/", "--fdpass")
    assert "--fdpass cannot go through https://p:443" in complaint(http2tcp(*fdpass, "--proxy", "https://u:s3cret@p"))
    assert "s3cret" not in complaint(http2tcp(*fdpass, "--proxy", "https://u:s3cret@p"))
    assert http2tcp(*fdpass, "--proxy", "http://p").client.fdpass


def test_why_there_is_no_proxy_is_said_to_who_asks(http2tcp: Run) -> None:
    said = http2tcp(*CLIENT, "-v", HTTPS_PROXY=PROXY, NO_PROXY=".example.com").err
    assert said == "http2tcp: no proxy: NO_PROXY has example.com\n"
    assert http2tcp("-c", "-v", "-e", "https://localhost/", HTTPS_PROXY=PROXY).err == (
        "http2tcp: no proxy: localhost is this machine\n"
    )
    assert http2tcp(*CLIENT, HTTPS_PROXY=PROXY, NO_PROXY="*").err == ""


def test_the_environment_is_read_when_a_client_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = parse_endpoint("https://example.com/")
    assert environment_proxy(endpoint) is None
    monkeypatch.setenv("all_proxy", PROXY)
    assert shown(environment_proxy(endpoint)) == "http://proxy:3128"


# --- the process --------------------------------------------------------------------------------


async def test_a_client_goes_through_the_environment_s_proxy_and_says_so_if_asked() -> None:
    async with target(greet_and_close) as where, served() as server:
        async with fake_proxy("http", hosts={"site.invalid:80": str(server.address)}) as proxy:
            environ = environment(HTTP2TCP_TOKEN=TOKEN, HTTP_PROXY=proxy.url("http", "us3r:s3cret@"))
            async with client("-v", "-e", "http://site.invalid/", "-d", where, environ=environ) as process:
                assert process.stdout is not None
                assert await read_all(process.stdout) == b"hello\n"
                await close_stdin(process)
                status, said = await ended(process)
    assert status == 0
    assert f"http2tcp: through the proxy {proxy.url('http')} (from HTTP_PROXY)\n" in said
    assert "s3cret" not in said
    assert proxy.logins == [b"us3r:s3cret"]


async def test_a_cgi_program_s_caller_cannot_choose_the_proxy() -> None:
    async with fake_proxy("http") as proxy:
        environ = environment(HTTP2TCP_TOKEN=TOKEN, HTTP_PROXY=proxy.url("http"), REQUEST_METHOD="GET")
        async with client("-q", "-e", "http://site.invalid/", "-d", "h:1", environ=environ) as process:
            status, said = await ended(process)
    assert (status, proxy.asked) == (64, [])
    assert "site.invalid" in one_line(said)


async def test_a_proxy_that_fails_is_a_hop_of_its_own_with_a_status_of_its_own() -> None:
    url = f"http://us3r:s3cret@127.0.0.1:{closed_port()}"
    async with client("-e", "https://site.invalid/", "-d", "h:1", "--proxy", url) as process:
        status, said = await ended(process)
    assert status == 75
    sentence = one_line(said)
    assert sentence.startswith("http2tcp: proxy: http://127.0.0.1:")
    assert "connection refused" in sentence
    assert "s3cret" not in said


async def test_insecure_warns_of_the_proxy_as_well() -> None:
    url = f"https://127.0.0.1:{closed_port()}"
    async with client("-e", "https://site.invalid/", "-d", "h:1", "--proxy", url, "--insecure") as process:
        _, said = await ended(process)
    assert f"the certificate of {url} is not verified" in said
    assert "the certificate of site.invalid is not verified" in said
