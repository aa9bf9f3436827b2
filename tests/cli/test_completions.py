"""The completions as real shells offer them: at a prompt, by the Tab key."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.generate import ROOT
from tests.generate.described import Described, describe
from tests.support.processes import environment, program
from tests.support.terminal import Terminal, terminal

SCRIPTS = ROOT / "docs" / "completions"
PROMPT = "READY>"

#: What a line completes to: the words that are offered for its last one.
Offer = Callable[[str], set[str]]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where the shell runs: a file, one with a blank in its name, and a directory."""
    directory = tmp_path / "here"
    (directory / "tokens").mkdir(parents=True)
    (directory / "token file").touch()
    (directory / "other").touch()
    return directory


def ran(shell: Terminal, line: str) -> list[str]:
    """Type a line, press Tab at its end, and run what became of it: the arguments."""
    shell.press(f"{line}\t\n")
    shell.until("RAN<")
    arguments = shell.until(">\r\n")
    shell.until(PROMPT)
    return arguments.split("><")


def listed(shell: Terminal, line: str) -> set[str]:
    """Type a line, press Tab twice at its end, and read the list that is shown below it."""
    # Ctrl-U takes the line away again.
    shell.press(f"{line}\t\t\x15echo EN''D\n")
    shown = shell.until("END").split("\n", 1)[1]
    shell.until(PROMPT)
    # The list ends where the line is shown again.
    return set(re.findall(r"(?<![^\s])(-{1,2}[\w-]+|@?[\w./:-]+)", re.split(f"{PROMPT}|http2tcp ", shown)[0]))


@pytest.fixture
def bash(here: Path) -> Iterator[Terminal]:
    command = [program("bash"), "--norc", "--noprofile", "-i"]
    with terminal(command, PROMPT, PS1=PROMPT, INPUTRC="/dev/null", HOME=str(here)) as shell:
        shell.until(PROMPT)
        shell.run(f"cd '{here}'; . '{SCRIPTS / 'http2tcp.bash'}'")
        shell.run("http2tcp() { printf RAN; printf '<%s>' \"$@\"; echo; }")
        shell.run("bind 'set completion-query-items 0'; bind 'set page-completions off'; bind 'set bell-style none'")
        yield shell


@pytest.fixture
def zsh(here: Path) -> Iterator[Terminal]:
    with terminal([program("zsh"), "-f", "-i"], PROMPT, PS1=PROMPT, HOME=str(here)) as shell:
        shell.until(PROMPT)
        shell.run(f"cd '{here}'; fpath=('{SCRIPTS}' $fpath); autoload -U compinit; compinit -u -D; LISTMAX=1000")
        shell.run("http2tcp() { printf RAN; printf '<%s>' \"$@\"; echo; }")
        # Without the descriptions, the list is made of words alone.
        shell.run("zstyle ':completion:*' verbose no; setopt no_beep list_ambiguous no_auto_menu no_always_last_prompt")
        yield shell


@pytest.fixture(params=["bash", "zsh"])
def shell(request: pytest.FixtureRequest) -> Terminal:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Terminal)
    return found


def fish(line: str, here: Path) -> dict[str, str]:
    """What fish offers, with its descriptions."""
    script = f"source '{SCRIPTS / 'http2tcp.fish'}'; complete --do-complete $argv[1]"
    done = subprocess.run(
        [program("fish"), "--no-config", "-c", script, line],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=here,
        env=environment(HOME=str(here)),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return dict(offered.partition("\t")[::2] for offered in done.stdout.splitlines())


def long_names(*groups: str) -> set[str]:
    return {option.long for option in describe() if option.group in groups}


SERVER = long_names("Server", "Both")
CLIENT = long_names("Client", "Both")


def test_without_a_mode_all_options_are_offered(shell: Terminal) -> None:
    assert long_names("Server", "Client", "Both") <= listed(shell, "http2tcp --")


@pytest.mark.parametrize("mode", ["-s", "--server"])
def test_a_server_is_offered_a_server_s_options(shell: Terminal, mode: str) -> None:
    assert listed(shell, f"http2tcp {mode} --") == SERVER - {"--server"}


@pytest.mark.parametrize("mode", ["-c", "--client"])
def test_a_client_is_offered_a_client_s_options(shell: Terminal, mode: str) -> None:
    assert listed(shell, f"http2tcp {mode} --") == CLIENT - {"--client"}


def test_what_was_given_is_not_offered_again_but_where_it_is_repeatable(shell: Terminal) -> None:
    offered = listed(shell, "http2tcp -c -e https://h/ --transport tcp -H A:b -d db:1 --header=C:d --")
    assert not offered & {"--client", "--endpoint", "--transport", "--destination"}
    assert "--header" in offered


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("http2tcp -c --endp", ["-c", "--endpoint"]),
        ("http2tcp -c --transport web", ["-c", "--transport", "websocket"]),
        ("http2tcp -c --transport=http", ["-c", "--transport=http2tcp/1.0"]),
        ("http2tcp -s --token-file oth", ["-s", "--token-file", "other"]),
        ("http2tcp -s --token-file=oth", ["-s", "--token-file=other"]),
        ("http2tcp -s --token-file token\\ f", ["-s", "--token-file", "token file"]),
        ("http2tcp -s --token-file 'token f", ["-s", "--token-file", "token file"]),
        ("http2tcp -c -H @oth", ["-c", "-H", "@other"]),
        ("http2tcp -c --header @token\\ f", ["-c", "--header", "@token file"]),
        ("http2tcp -c --proxy @oth", ["-c", "--proxy", "@other"]),
        ("http2tcp -c --proxy socks5h", ["-c", "--proxy", "socks5h://"]),
        # A value of which nothing is known is left alone; so is a file's name where none is wanted.
        ("http2tcp -c -d oth", ["-c", "-d", "oth"]),
        ("http2tcp -c -t oth", ["-c", "-t", "oth"]),
        ("http2tcp -c -e https://oth", ["-c", "-e", "https://oth"]),
    ],
)
def test_tab_completes(shell: Terminal, line: str, arguments: list[str]) -> None:
    assert ran(shell, line) == arguments


def test_a_transport_s_names_are_listed(shell: Terminal) -> None:
    assert listed(shell, "http2tcp -c --transport ") == set(option("--transport").choices)


def option(name: str) -> Described:
    (found,) = [option for option in describe() if name in option.names]
    return found


# --- fish ---------------------------------------------------------------------------------------


def test_fish_offers_each_option_with_its_words(here: Path) -> None:
    offered = fish("http2tcp --", here)
    for each in describe():
        assert offered[each.long] == each.summary
    assert fish("http2tcp -", here)["-e"] == option("-e").summary


def test_fish_offers_the_options_of_the_mode(here: Path) -> None:
    assert long_names("Client", "Both") <= fish("http2tcp -c --", here).keys()
    assert not long_names("Server") & fish("http2tcp -c --", here).keys()
    assert not long_names("Server") & fish("http2tcp --ssh-config box --", here).keys()
    assert long_names("Server", "Both") <= fish("http2tcp --server --", here).keys()
    assert not long_names("Client") & fish("http2tcp --server --", here).keys()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("http2tcp -c --transport ", set(option("--transport").choices)),
        ("http2tcp -c --transport=web", {"--transport=websocket"}),
        ("http2tcp -c --token-file oth", {"other"}),
        ("http2tcp -c --token-file tok", {"token file", "tokens/"}),
        ("http2tcp -c -H @tok", {"@token file", "@tokens/"}),
        ("http2tcp -c --proxy soc", {"socks5://", "socks5h://"}),
        ("http2tcp -c -d oth", set()),
        ("http2tcp -c oth", set()),
    ],
)
def test_fish_completes(here: Path, line: str, words: set[str]) -> None:
    assert set(fish(line, here)) == words
