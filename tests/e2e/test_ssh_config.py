"""The block that `--ssh-config` prints, appended to a user's configuration: a login with it, through nginx."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.openssh import Login
from tests.support.processes import environment, http2tcp, program
from tests.support.site import Site


@pytest.mark.parametrize("transport", ["auto", "tcp", "websocket"])
@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
def test_a_login_works_once_the_block_is_appended(site: Site, tmp_path: Path, transport: str, shared: bool) -> None:
    # Everything but the way, as a user has it; the file ends within a line.
    login = Login(site.sshd, ["false"], tmp_path / "user")
    configuration = Path(login.command("ssh")[2])
    text = "".join(line for line in configuration.read_text().splitlines(True) if not line.startswith("ProxyCommand"))
    files = tmp_path / "my files, 100%"
    files.mkdir()
    (files / "token").symlink_to(site.server.token_file)
    block = subprocess.run(
        http2tcp(
            *("--ssh-config", "target", "-e", site.https.replace("localhost", "%h"), "-d", site.sshd.address),
            *("--ca-file", str(site.certificates.ca), "--token-file", "token", "--transport", transport),
        ),
        cwd=files,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    if shared:
        block = block.replace("#Control", "Control").replace("~/.ssh/%C", str(tmp_path / "c"))
    configuration.write_text(text.replace("HostName 127.0.0.1", "HostName localhost").rstrip("\n") + block)
    ssh = [program("ssh"), "-F", str(configuration), "target"]
    try:
        for status in (3, 4):
            done = subprocess.run(
                [*ssh, f"echo there; exit {status}"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60
            )
            assert (done.returncode, done.stdout) == (status, b"there\n")
    finally:
        if shared:
            left = subprocess.run([*ssh[:-1], "-O", "exit", "target"], capture_output=True, timeout=20)
    assert not shared or left.returncode == 0
