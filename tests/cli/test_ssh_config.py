"""`--ssh-config`: the block that is appended to ~/.ssh/config, as ssh and the user's shell read it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from http2tcp.client.settings import RESUME_OF_STDIO
from http2tcp.command import ssh_config
from tests.support.processes import environment, program
from tests.support.processes import http2tcp as http2tcp_process

from .conftest import Run, complaint

ENDPOINT = "https://example.com/~http2tcp/"

# What some shell, ssh or a configuration file gives a meaning to.
ODD = [
    *("it's", 'say "hi"', "two  words", "$HOME", "`id`", "$(id)", "back\\slash", "\\\\two", "\\", "end\\", "'", "\\'"),
    *(
        "100%",
        "%",
        "50%off",
        "%d",
        "#hash",
        "a;b&c|d<e>f",
        "!bang",
        "*?[x]",
        "{a,b}",
        "=eq",
        "-dash",
        "~",
        "ünï—",
        "(",
        "^",
    ),
]


@pytest.fixture(autouse=True)
def started_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_config, "own_command", lambda: ["http2tcp"])


def ssh_says(configuration: str, host: str, directory: Path) -> dict[str, str]:
    """The configuration as ssh understands it for one host."""
    file = directory / "config"
    file.write_text(configuration)
    command = [program("ssh"), "-G", "-T", "-F", str(file), host]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def proxy_command(block: str) -> str:
    (line,) = [line for line in block.splitlines() if line.startswith("    ProxyCommand ")]
    return line.removeprefix("    ProxyCommand ")


def test_many_sites_need_one_block(http2tcp: Run, tmp_path: Path) -> None:
    ran = http2tcp(
        *("--ssh-config", "*.example.com", "-c", "-e", "https://%h/~http2tcp/", "-d", "localhost:22"),
        *("--token-file", "/home/me/.config/http2tcp/token"),
    )
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == (
        "\n"
        "Host *.example.com\n"
        "    ProxyCommand http2tcp -c -e 'https://%h/~http2tcp/' --token-file /home/me/.config/http2tcp/token"
        " -d localhost:22\n"
        "    # http2tcp brings a lost connection back for up to 15 minutes. With a lower count, ssh would\n"
        "    # end before that; with no interval, it would not notice that the host behind the server is dead.\n"
        "    ServerAliveInterval 60\n"
        "    ServerAliveCountMax 20\n"
        "    # One tunnel for all logins to a host: later logins start at once,"
        " but end when the first one's connection does.\n"
        "    #ControlMaster auto\n"
        "    #ControlPath ~/.ssh/%C\n"
        "    #ControlPersist 10m\n"
    )
    # It is appended to a file that may not end with a line's end.
    said = ssh_says("Host other\n    User x" + ran.out, "one.example.com", tmp_path)
    assert said["proxycommand"] == proxy_command(ran.out)
    assert (said["serveraliveinterval"], said["serveralivecountmax"]) == ("60", "20")
    assert "proxycommand" not in ssh_says("Host other\n    User x" + ran.out, "other", tmp_path)


def test_the_sharing_that_the_comment_offers_is_what_ssh_takes(http2tcp: Run, tmp_path: Path) -> None:
    block = http2tcp("--ssh-config", "box", "-e", ENDPOINT).out
    said = ssh_says(block.replace("#Control", "Control"), "box", tmp_path)
    assert said["controlmaster"] == "auto"
    assert said["controlpersist"] == "600"
    assert said["controlpath"] != "none"


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh", "fish", "tcsh"])
def test_each_value_comes_through_ssh_and_the_user_s_shell_unchanged(
    http2tcp: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: str
) -> None:
    # A client that only notes what it is told, in a directory of an odd name; the user's own is another odd one.
    told = tmp_path / "told"
    own = tmp_path / '%h it\'s a \\ "client" $HOME' / "http2tcp"
    own.parent.mkdir()
    own.write_text(f"#!{sys.executable}\nimport sys\nopen({str(told)!r}, 'w').write('\\0'.join(sys.argv[1:]))\n")
    own.chmod(0o755)
    monkeypatch.setattr(ssh_config, "own_command", lambda: [str(own)])
    here = tmp_path / "%p 'here'"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "%h %% \\token").touch()

    headers = [f"X-{number}: {text}." for number, text in enumerate(ODD)]
    ran = http2tcp(
        *("--ssh-config", "box", "-e", "https://%h/a%20b/?q=%25", "-d", "%h:%p", "--token-file", "%h %% \\token"),
        *(word for header in headers for word in ("-H", header)),
        *("-H", "@%r/headers", "--user-agent", "%n%%%x"),
    )
    assert (ran.status, ran.err) == (0, "")
    # `-F /dev/null` apart, ssh reads it as the user's own file.
    file = tmp_path / "config"
    file.write_text(ran.out)
    command = [program("ssh"), "-F", str(file), "-o", "BatchMode=yes", "-p", "2222", "me@box"]
    subprocess.run(command, capture_output=True, timeout=20, env=environment(SHELL=program(shell)))
    # In the order of the help.
    assert told.read_text().split("\0") == [
        *("-c", "-e", "https://box/a%20b/?q=%25"),
        *(word for header in headers for word in ("-H", header)),
        *("-H", f"@{here}/me/headers", "--user-agent", "box%%x"),
        *("--token-file", f"{here}/%h %% \\token", "-d", "box:2222"),
    ]


def test_a_file_that_is_not_there_yet_may_be_named_by_ssh_s_tokens(
    http2tcp: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = tmp_path / "50%h"
    here.mkdir()
    monkeypatch.chdir(here)
    block = http2tcp(
        *("--ssh-config", "*.x", "-e", "https://%h/", "--token-file", "%h.token", "--ca-file", "%h%%.pem"),
        *("--client-cert", f"{tmp_path}/%r.pem"),
    ).out
    command = proxy_command(block)
    doubled = str(here).replace("%", "%%")
    assert f"--token-file {doubled}/%h.token" in command
    assert f"--ca-file {doubled}/%h%%.pem" in command
    assert f"--client-cert {tmp_path}/%r.pem" in command


def test_in_a_directory_that_is_gone_a_file_is_named_from_the_root(
    http2tcp: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    arguments = ("--ssh-config", "box", "-e", ENDPOINT, "--token-file")
    assert "'token': name it from the root" in complaint(http2tcp(*arguments, "token"))
    assert "--token-file /t/token" in http2tcp(*arguments, "/t/token").out


def test_the_token_s_file_is_not_opened(http2tcp: Run, tmp_path: Path) -> None:
    # Who opens it waits for somebody who writes.
    os.mkfifo(tmp_path / "pipe")
    ran = http2tcp(
        *("--ssh-config", "box", "-e", ENDPOINT, "--token-file", str(tmp_path / "pipe")),
        *("-H", f"@{tmp_path / 'pipe'}", "--proxy", f"@{tmp_path / 'pipe'}"),
    )
    assert ran.status == 0
    assert f"-H @{tmp_path}/pipe --proxy @{tmp_path}/pipe --token-file {tmp_path}/pipe" in ran.out


@pytest.mark.parametrize(
    ("arguments", "variables", "remedy"),
    [
        (("-t", "s3cret"), {}, "--token-file"),
        ((), {"HTTP2TCP_TOKEN": "s3cret"}, "--token-file"),
        (("-H", "Authorization: s3cret"), {}, "-H @FILE"),
        (("-H", "X-Api-Key: s3cret"), {}, "-H @FILE"),
        (("-H", "cookie: s3cret"), {}, "-H @FILE"),
        ((), {"HTTP2TCP_HEADER": "X-Site: 1\nCF-Access-Client-Secret: s3cret"}, "-H @FILE"),
        (("--proxy", "http://me:s3cret@proxy:3128"), {}, "--proxy @FILE"),
        ((), {"HTTP2TCP_PROXY": "me:s3cret@proxy:3128"}, "--proxy @FILE"),
        (("-e", "https://me:s3cret@example.com/"), {}, "-H @FILE"),
    ],
)
def test_a_secret_is_not_printed_but_told_where_to_put_it(
    http2tcp: Run, arguments: tuple[str, ...], variables: dict[str, str], remedy: str
) -> None:
    sentence = complaint(http2tcp("--ssh-config", "box", "-e", ENDPOINT, *arguments, **variables))
    assert "s3cret" not in sentence
    assert remedy in sentence


def test_a_token_file_on_the_command_line_beats_a_token_in_the_environment(http2tcp: Run) -> None:
    ran = http2tcp("--ssh-config", "box", "-e", ENDPOINT, "--token-file", "/t", HTTP2TCP_TOKEN="s3cret")
    assert "s3cret" not in ran.out
    assert "--token-file /t" in ran.out


@pytest.mark.parametrize(
    ("arguments", "interval"),
    [
        (("--no-resume",), "25"),
        (("--no-resume", "--transport", "auto"), "25"),
        (("--transport", "tcp"), "25"),
        (("--transport", "http2tcp/1.0", "--keepalive", "9.6"), "10"),
        (("--transport", "tcp", "--keepalive", "1.2"), "1"),
        (("--no-resume", "--transport", "connect-tcp"), "0"),
        (("--no-resume", "--transport", "websocket"), "0"),
    ],
)
def test_ssh_breaks_the_silence_where_the_transport_does_not(
    http2tcp: Run, tmp_path: Path, arguments: tuple[str, ...], interval: str
) -> None:
    block = http2tcp("--ssh-config", "box", "-e", ENDPOINT, *arguments).out
    said = ssh_says(block, "box", tmp_path)
    # ssh's own default count: nothing comes back here.
    assert (said["serveraliveinterval"], said["serveralivecountmax"]) == (interval, "3")


@pytest.mark.parametrize("arguments", [(), *(("--transport", name) for name in ("auto", "connect-tcp", "websocket"))])
def test_ssh_does_not_give_up_a_tunnel_that_may_still_come_back(
    http2tcp: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    said = ssh_says(http2tcp("--ssh-config", "box", "-e", ENDPOINT, *arguments).out, "box", tmp_path)
    interval, count = int(said["serveraliveinterval"]), int(said["serveralivecountmax"])
    # It still asks: else it would never notice that a host behind the server is dead.
    assert 0 < interval <= 60
    # The first miss may be counted at once, and the last attempt may begin at the very end.
    assert interval * (count - 1) > RESUME_OF_STDIO + 60


def test_fdpass_is_said_to_ssh_too(http2tcp: Run, tmp_path: Path) -> None:
    block = http2tcp("--ssh-config", "box", "-e", "http://example.com/", "--fdpass").out
    said = ssh_says(block, "box", tmp_path)
    assert said["proxyusefdpass"] == "yes"
    assert (said["serveraliveinterval"], said["serveralivecountmax"]) == ("25", "3")


def test_options_of_the_environment_are_in_the_block_and_those_of_a_server_are_not(http2tcp: Run) -> None:
    ran = http2tcp(
        "--ssh-config",
        "box",
        HTTP2TCP_SERVER="1",
        HTTP2TCP_PATH="/p",
        HTTP2TCP_ENDPOINT=ENDPOINT,
        HTTP2TCP_VERBOSE="1",
        HTTP2TCP_INSECURE="0",
        HTTP2TCP_PIN_SHA256="00" * 32 + "\n" + "11" * 32,
    )
    assert ran.err == ""
    assert proxy_command(ran.out) == (
        f"http2tcp -c -e '{ENDPOINT}' --pin-sha256 {'00' * 32} --pin-sha256 {'11' * 32} -v"
    )


def test_a_mistyped_variable_that_is_not_in_the_block_is_warned_of(http2tcp: Run) -> None:
    ran = http2tcp("--ssh-config", "box", "-e", ENDPOINT, HTTP2TCP_TOKEN_FIEL="/t")
    assert proxy_command(ran.out) == f"http2tcp -c -e '{ENDPOINT}'"
    assert "is it HTTP2TCP_TOKEN_FILE?" in ran.err


def test_no_proxy_on_the_command_line_beats_a_proxy_of_the_environment(http2tcp: Run) -> None:
    ran = http2tcp("--ssh-config", "box", "-e", ENDPOINT, "--no-proxy", HTTP2TCP_PROXY="me:s3cret@p")
    assert proxy_command(ran.out) == f"http2tcp -c -e '{ENDPOINT}' --no-proxy"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("-s", "-e", ENDPOINT), "without -s"),
        (("-c", "-e", ENDPOINT, "--check"), "--check"),
        (("-e", ENDPOINT, "--json"), "--json"),
        (("--demo",), "--demo"),
        (("-e", ENDPOINT, "--config", "/etc/http2tcp.toml"), "--config"),
        (("--new-token", "alice"), "--new-token"),
        (("-e", ENDPOINT, "-l", "5432"), "-l"),
        (("-e", ENDPOINT, "-L", "1:b:2"), "-L"),
        (("-e", ENDPOINT, "-D", "1080"), "-D"),
        ((), "-e"),
        (("-e", "https://%z/"), "%z"),
        (("-e", ENDPOINT, "-d", "%h"), "-d"),
        (("-e", "https://h/{target_host}/{target_port}/"), "-d"),
        (("-e", ENDPOINT, "--ca-file", "/no/such/file"), "no such file"),
        (("-e", ENDPOINT, "--token-file", ""), "no name"),
        (("-e", ENDPOINT, "-H", "@"), "no name"),
        (("-e", ENDPOINT, "--token-file", "/a\nProxyCommand evil"), "control character"),
        (("-e", ENDPOINT, "--fdpass"), "--fdpass"),
        (("-e", ENDPOINT, "--transport", "carrier-pigeon"), "--transport"),
        (("-e", ENDPOINT, "--proxy", "ftp://p"), "proxy"),
    ],
)
def test_what_cannot_become_a_block_is_one_sentence(http2tcp: Run, arguments: tuple[str, ...], word: str) -> None:
    assert word in complaint(http2tcp("--ssh-config", "box", *arguments))


@pytest.mark.parametrize("name", ["", "a b", "-oProxyCommand=x", "!x", "x\nUser y", 'a"b', "a#b", "a\x7fb"])
def test_a_name_that_is_none_for_ssh_is_refused(http2tcp: Run, name: str) -> None:
    assert "mybox" in complaint(http2tcp("--ssh-config", name, "-e", ENDPOINT))


def test_a_file_name_that_is_no_utf8_is_printed_as_it_is() -> None:
    command = http2tcp_process("--ssh-config", "box", "-e", ENDPOINT, "--token-file", os.fsdecode(b"/t\xff"))
    done = subprocess.run(command, capture_output=True, timeout=30, env=environment(), check=True)
    assert b"--token-file '/t\xff'\n" in done.stdout


def test_a_block_that_could_not_be_written_is_no_success() -> None:
    command = http2tcp_process("--ssh-config", "box", "-e", ENDPOINT)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, env=environment())
    assert (done.returncode, done.stderr) == (72, "http2tcp: stdio: cannot write to stdout: no space left on device\n")


def test_without_a_stdout_nothing_is_printed_and_nothing_breaks() -> None:
    command = shlex.join(http2tcp_process("--ssh-config", "box", "-e", ENDPOINT))
    done = subprocess.run(["sh", "-c", f"{command} >&-"], capture_output=True, timeout=30, env=environment())
    assert (done.stdout, done.stderr) == (b"", b"")


def test_the_page_shows_what_is_printed(http2tcp: Run) -> None:
    page = (Path(__file__).parents[2] / "docs" / "ssh-config.md").read_text()
    command, block = re.findall(r"^```(?:sh)?\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    name, *arguments = shlex.split(command.replace("~/", "/home/me/").replace("/home/me/http2tcp", "/~http2tcp"))
    assert name == "http2tcp"
    assert http2tcp(*arguments).out == block


# --- what starts http2tcp -----------------------------------------------------------------------


def script_in(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    script = directory / "http2tcp"
    script.touch(0o755)
    return script


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()


@pytest.mark.usefixtures("own")
def test_a_command_that_every_shell_finds_is_called_by_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = script_in(tmp_path / "venv" / "bin")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "http2tcp").symlink_to(script)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert ssh_config.own_command() == ["http2tcp"]
    # An activated environment is this terminal's alone.
    monkeypatch.setenv("PATH", str(tmp_path / "venv" / "bin"))
    assert ssh_config.own_command() == [str(script)]
    # Another one's.
    monkeypatch.setenv("PATH", str(script_in(tmp_path / "other").parent))
    assert ssh_config.own_command() == [str(script)]
    monkeypatch.setenv("PATH", "/nowhere")
    assert ssh_config.own_command() == [str(script)]


@pytest.mark.usefixtures("own")
def test_a_module_is_started_as_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "http2tcp" / "__main__.py")])
    assert ssh_config.own_command() == [sys.executable, "-m", "http2tcp"]
