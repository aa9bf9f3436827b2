"""What a client says at a terminal that ssh has put into raw mode: each line begins at its left."""

from __future__ import annotations

import os
import pty
import subprocess
import tty

import pytest

from tests.support.loopback import closed_port
from tests.support.processes import environment, http2tcp


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "cooked"])
def test_a_line_ends_where_the_next_one_begins_at_the_left(raw: bool) -> None:
    master, slave = pty.openpty()
    if raw:
        tty.setraw(slave)
    # A warning comes first, as what a client says of an outage.
    command = http2tcp("-c", "--insecure", "-e", f"https://127.0.0.1:{closed_port()}/", "-d", "127.0.0.1:22")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=slave, env=environment())
    said = os.read(master, 4096)
    os.close(slave)
    os.close(master)
    assert done.returncode != 0
    warning = said.partition(b"\n")[0]
    assert warning.startswith(b"http2tcp: --insecure")
    assert warning.endswith(b"\r")
    assert warning.count(b"\r") == 1
