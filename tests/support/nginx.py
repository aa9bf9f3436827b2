"""A real nginx: started as the current user from a configuration, usually the one in examples/."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import listens, program, running

EXAMPLE = Path(__file__).parents[2] / "examples" / "nginx.conf"

_TEMP_PATHS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@dataclass(frozen=True)
class Nginx:
    """A running nginx and where it writes."""

    process: subprocess.Popen[bytes]
    directory: Path

    @property
    def access_log(self) -> str:
        return (self.directory / "access.log").read_text()

    @property
    def other_log(self) -> str:
        """What was not the location's."""
        return (self.directory / "other.log").read_text()

    @property
    def error_log(self) -> str:
        return (self.directory / "error.log").read_text()

    def reload(self) -> None:
        """As `nginx -s reload` does."""
        self.process.send_signal(signal.SIGHUP)

    def workers(self) -> set[int]:
        """The pids of its workers, the old ones of a reload included."""
        pid = self.process.pid
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def replaced(text: str, replacements: Mapping[str, str]) -> str:
    """The text with each key's one occurrence replaced by its value."""
    for old, new in replacements.items():
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the file, not once"
        text = text.replace(old, new)
    return text


def example(directory: Path, replacements: Mapping[str, str]) -> str:
    """The example's text with its log in `directory`, and the replacements made."""
    log = {"/var/log/nginx/http2tcp.log": str(directory / "access.log")}
    return replaced(EXAMPLE.read_text(), {**log, **replacements})


def prepared(file: Path) -> Path:
    """The configuration, made to write nowhere but in its own directory, besides what it names."""
    directory = file.parent
    places = "".join(f"{name}_temp_path {directory / name};\n" for name in _TEMP_PATHS)
    places += f"access_log {directory / 'other.log'};\n"
    file.write_text(replaced(file.read_text(), {"\nhttp {\n": f"\nhttp {{\n{places}"}))
    return file


def command(file: Path) -> list[str]:
    """nginx in the foreground, with a configuration that was prepared."""
    directory = file.parent
    # Workers are another user's by default, who cannot enter the test's directories.
    user = "user root;" if os.getuid() == 0 else ""
    options = ["-e", str(directory / "error.log"), "-g", f"daemon off; pid {directory / 'nginx.pid'}; {user}"]
    return [program("nginx"), "-p", str(directory), "-c", str(file), *options]


def passing_upgrades(front: int, server: int, *, main: str = "", also: str = "") -> str:
    """The least that passes tunnels on, all below `/`; with lines for the main context and for its server block."""
    return f"""
{main}
events {{ }}
http {{
    map $http_upgrade $tunnel {{ default ""; connect-tcp connect-tcp; tcp tcp; }}
    server {{
        listen 127.0.0.1:{front};
        location / {{
            proxy_pass http://127.0.0.1:{server};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $tunnel;
            proxy_set_header Connection upgrade;
        }}
        {also}
    }}
}}
"""


@contextmanager
def nginx(directory: Path, configuration: str, port: int) -> Iterator[Nginx]:
    """nginx with this configuration, which listens at `port`. Its logs and temporary files go to `directory`."""
    directory.mkdir(exist_ok=True)
    file = directory / "nginx.conf"
    file.write_text(configuration)
    with running(command(prepared(file)), directory / "output.log", lambda: listens(port)) as process:
        yield Nginx(process, directory)
