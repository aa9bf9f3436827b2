"""ssh, scp and sftp through nginx, as a user runs them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.openssh import Login
from tests.support.processes import conversation, environment, exists, free_port, listens, wait_until
from tests.support.site import Site

LoginTo = Callable[..., Login]

HUNDRED_MB = 100 * 1000 * 1000


@pytest.mark.parametrize("transport", ["auto", "connect-tcp", "tcp", "http2tcp/1.0", "websocket"])
def test_a_command_s_output_and_exit_status_come_back(
    site: Site, login: LoginTo, endpoint: str, transport: str
) -> None:
    done = login(site.client(endpoint, "--transport", transport)).run(
        "ssh", "target", "echo to stdout; echo to stderr >&2; exit 42"
    )
    assert (done.returncode, done.stdout, done.stderr) == (42, b"to stdout\n", b"to stderr\n")


def test_a_copied_file_is_the_same_both_ways(login: LoginTo, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "here").write_bytes(data)
    user = login()
    up = user.run("scp", "-q", str(tmp_path / "here"), f"target:{tmp_path}/there")
    down = user.run("scp", "-q", f"target:{tmp_path}/there", str(tmp_path / "back"))
    assert (up.returncode, up.stderr, down.returncode, down.stderr) == (0, b"", 0, b"")
    assert (tmp_path / "there").read_bytes() == data
    assert (tmp_path / "back").read_bytes() == data


def test_sftp_lists_and_gets(login: LoginTo, tmp_path: Path) -> None:
    (tmp_path / "remote file").write_text("contents")
    batch = f'cd {tmp_path}\nls -1\nget "remote file" {tmp_path}/got\nquit\n'
    done = login().run("sftp", "-q", "-b", "-", "target", stdin=batch.encode())
    assert done.returncode == 0, done.stderr
    assert b"remote file" in done.stdout
    assert (tmp_path / "got").read_text() == "contents"


def test_a_forwarded_port_carries_connections(login: LoginTo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.settimeout(20)
        local, remote = free_port(), service.getsockname()[1]
        command = login().command("ssh", "-N", "-L", f"127.0.0.1:{local}:127.0.0.1:{remote}", "target")
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment()) as ssh:
            try:
                wait_until(lambda: ssh.poll() is not None or listens(local), "ssh -L listens")
                # The look above was a connection too; its end is passed on.
                first, _ = service.accept()
                first.close()
                with socket.create_connection(("127.0.0.1", local), 20) as client:
                    accepted, _ = service.accept()
                    with accepted:
                        accepted.settimeout(20)
                        client.sendall(b"ping")
                        assert accepted.recv(100) == b"ping"
                        accepted.sendall(b"pong")
                        assert client.recv(100) == b"pong"
            finally:
                ssh.terminate()


def test_an_interactive_shell_learns_of_a_changed_window(login: LoginTo) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    # The remote side tells its size at the start and at every SIGWINCH.
    script = "trap 'exit 7' INT; trap 'stty size' WINCH; stty size; while true; do sleep 0.05; done"
    command = login().command("ssh", "-tt", "target", script)
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(master, 4096):
                shown.extend(data)
        except OSError:
            return

    reader = threading.Thread(target=read)
    reader.start()
    # Its own session with the pty as its terminal, as a terminal emulator starts it: SIGWINCH then reaches it.
    with subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command], stdin=slave, stdout=slave, stderr=slave, env=environment()
    ) as ssh:
        try:
            os.close(slave)
            wait_until(lambda: b"24 80" in shown, "the first window size")
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
            wait_until(lambda: b"50 132" in shown, "the changed window size")
            os.write(master, b"\x03")  # Ctrl-C is the remote script's, not ssh's or the client's
            assert ssh.wait(10) == 7
        finally:
            ssh.kill()
    reader.join(10)
    os.close(master)


def test_two_logins_share_the_tunnel_of_a_control_master(site: Site, login: LoginTo, tmp_path: Path) -> None:
    control = tmp_path / "c"
    user = login(options=[f"ControlPath {control}"])
    opened_before = site.server.log.count("opened session=")
    master = user.run("ssh", "-o", "ControlMaster=yes", "-o", "ControlPersist=60", "-fN", "target")
    assert master.returncode == 0, master.stderr
    try:
        assert user.run("ssh", "target", "echo one").stdout == b"one\n"
        assert user.run("ssh", "target", "echo two; exit 3").returncode == 3
    finally:
        left = user.run("ssh", "-O", "exit", "target")
    assert left.returncode == 0, left.stderr
    wait_until(lambda: not control.exists(), "the master has ended")
    assert site.server.log.count("opened session=") == opened_before + 1


@pytest.mark.parametrize("transport", ["connect-tcp", "tcp", "websocket"])
def test_100_mb_each_way_arrive_unchanged(site: Site, login: LoginTo, tmp_path: Path, transport: str) -> None:
    data = os.urandom(1_000_000) * (HUNDRED_MB // 1_000_000)
    user = login(site.client(site.https, "--transport", transport))
    up = user.run("ssh", "target", f"tee {tmp_path}/there | sha256sum", stdin=data, timeout=90)
    assert up.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    down = user.run("ssh", "target", f"cat {tmp_path}/there", timeout=90)
    assert len(down.stdout) == HUNDRED_MB
    assert hashlib.sha256(down.stdout).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("ending", ["normal", signal.SIGTERM, signal.SIGKILL], ids=str)
def test_no_client_is_left_when_ssh_has_ended(
    site: Site, login: LoginTo, tmp_path: Path, ending: str | signal.Signals
) -> None:
    pid_file = tmp_path / "pid"
    client = ["sh", "-c", f'echo $$ >{pid_file}; exec "$@"', "sh", *site.client(site.https)]
    command = login(client).command("ssh", "target", "echo ready; read line")
    with conversation(command) as ssh:
        assert ssh.stdin is not None
        assert ssh.stdout is not None
        assert ssh.stdout.readline() == b"ready\n"
        pid = int(pid_file.read_text())
        assert exists(pid)
        if isinstance(ending, signal.Signals):
            ssh.send_signal(ending)
        else:
            ssh.stdin.write(b"\n")
            ssh.stdin.flush()
        ssh.wait(10)
    wait_until(lambda: not exists(pid), "the client is gone", within=5)


def test_fdpass_logs_in_and_leaves_no_client(site: Site, login: LoginTo, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    client = ["sh", "-c", f'echo $$ >{pid_file}; exec "$@"', "sh", *site.client(site.http, "--fdpass")]
    command = login(client, options=["ProxyUseFdpass yes"]).command("ssh", "target", "echo ready; read line; exit 6")
    with conversation(command) as ssh:
        assert ssh.stdin is not None
        assert ssh.stdout is not None
        assert ssh.stdout.readline() == b"ready\n"
        wait_until(lambda: not exists(int(pid_file.read_text())), "the client is gone")
        ssh.communicate(b"\n", timeout=20)
        assert ssh.returncode == 6
