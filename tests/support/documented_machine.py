"""The machine of the documentation: example.com with nginx and sshd, what stands behind it, and a user who is new.

What a command of the documentation says is done as it says, but for this: ports are free ones of this machine, hosts
are addresses of loopback, /etc is a directory's, sudo asks nobody, ssh reads the home's configuration and knows the key
of the host, and `systemctl reload http2tcp` is for the server that the tutorial left running.
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import trustme

from tests.support.documented import Machine
from tests.support.front_ends import FrontEnd, Place
from tests.support.nginx import command as nginx_command
from tests.support.nginx import prepared
from tests.support.openssh import Sshd, sshd
from tests.support.processes import free_port, listens, program, running
from tests.support.real_proxies import PASSWORD, USER, tinyproxy
from tests.support.targets import target

# The site as its owner has it before the tutorial.
_NGINX = """\
events {}
http {
    include conf.d/*.conf;
    include sites-enabled/*;
}
"""
_SITE = """\
server {
    listen 127.0.0.1:PORT ssl;
    listen 127.0.0.2:PORT ssl;
    server_name example.com www.example.com;
    ssl_certificate     CERTIFICATE;
    ssl_certificate_key CERTIFICATE;
    location / {
        return 404;
    }
}
"""

# Where the pages have the configurations that their commands name.
_CONFIGURATIONS = {
    "HAProxy": "/etc/haproxy/haproxy.cfg",
    "Caddy": "/etc/caddy/Caddyfile",
    "Envoy": "/etc/envoy/envoy.yaml",
}

# What commands listen on, or connect to: the ports are written alone in places, as in `-D 1080`.
_PORTS = ("12345", "12346", "12347", "6379", "1080")
# The hosts behind the server. Each has an address of its own, so that what is forwarded may have the same port.
_DATABASE, _INTRANET = "127.0.0.3", "127.0.0.4"


@contextmanager
def documented_machine(root: Path) -> Iterator[Machine]:
    """A machine on which nothing of http2tcp is set up, and a user who has just got a home."""
    for name in (
        "home/me",
        "bin",
        "etc/nginx/conf.d",
        "etc/nginx/snippets",
        "etc/nginx/sites-available",
        "etc/nginx/sites-enabled",
    ):
        (root / name).mkdir(parents=True)
    with ExitStack() as stack:
        running_sshd = stack.enter_context(sshd(root / "sshd"))
        site = _start_nginx(stack, root)
        intranet = stack.enter_context(target(_intranet, _INTRANET))
        proxy = stack.enter_context(tinyproxy(root / "proxy"))
        ports = {name: str(free_port()) for name in _PORTS}
        database = f"{_DATABASE}:{ports['6379']}"
        _start_redis(stack, root, ports["6379"])
        here = f"localhost:{running_sshd.port}"
        machine = Machine(
            root,
            replacements=[
                ("/opt/http2tcp/bin/http2tcp", "http2tcp"),
                ("~/.local/share/http2tcp/bin/http2tcp", "http2tcp"),
                ("https://example.com/", f"https://localhost:{site}/"),
                ("wss://example.com/", f"wss://localhost:{site}/"),
                ("https://%h/", f"https://%h:{site}/"),
                # Two more sites; nginx listens at both of the addresses.
                ("*.example.com", "127.0.0.*"),
                ("one.example.com", "127.0.0.1"),
                ("two.example.com", "127.0.0.2"),
                # A machine behind the site.
                ("*.internal:22", here),
                ("*.internal", "localhos?"),
                ("box.internal", "localhost"),
                ("USER:PASSWORD@proxy.example.com:3128", f"{USER}:{PASSWORD}@localhost:{proxy}"),
                ("@proxy.example.com:3128", f"@localhost:{proxy}"),
                ("localhost:22", here),
                ("/localhost/22", f"/localhost/{running_sshd.port}"),
                ("http://intranet/", f"http://{intranet}/"),
                ("intranet:80", intranet),
                ("db:6379", database),
                *ports.items(),
                ("/etc/", f"{root}/etc/"),
            ],
            printed=[
                (re.escape(str(root)), ""),
                (re.escape(f"localhost:{site}"), "example.com"),
                (rf"%h:{site}\b", "%h"),
                (re.escape("127.0.0.*"), "*.example.com"),
                (re.escape("localhos?"), "*.internal"),
                (re.escape(here), "localhost:22"),
                (re.escape(intranet), "intranet:80"),
                (re.escape(database), "db:6379"),
                (re.escape(f"localhost:{proxy}"), "proxy.example.com:3128"),
                *((rf"\b{port}\b", documented) for documented, port in ports.items()),
            ],
            variables={"SSL_CERT_FILE": str(root / "authority.pem")},
        )
        _fill_path(machine, running_sshd)
        stack.callback(machine.end)
        yield machine


@contextmanager
def behind(machine: Machine, front_end: FrontEnd, directory: Path) -> Iterator[Machine]:
    """The machine once more, with its site behind another front end, which leads to the tutorial's server."""
    place = Place(directory, free_port(), machine.here("127.0.0.1:12345"), machine.root / "site.pem")
    with front_end.running(place, {}) as process:
        # The file that is checked is the one that is served; what reloads it is the system's.
        file = str(directory / Path(front_end.example).name)
        documented = _CONFIGURATIONS.get(front_end.name, file)
        for name in ("haproxy", "caddy", "envoy"):
            machine.wrap(name, f'exec {program(name)} "$@"')
        machine.wrap(
            "apache2ctl", f"case $1 in configtest) exec {program('apache2')} -t -f {file};; esac; reload-apache2"
        )
        machine.wrap("reload-haproxy", f"kill -USR2 {process.pid}")
        machine.wrap("reload-apache2", f"kill -USR1 {process.pid}")
        machine.wrap("reload-caddy", f"exec caddy reload --force --config {file} 2>/dev/null")
        yield replace(
            machine,
            replacements=[
                ("https://example.com/", f"https://localhost:{place.port}/"),
                (documented, file),
                *machine.replacements,
            ],
            printed=[
                (re.escape(f"localhost:{place.port}"), "example.com"),
                (re.escape(file), documented),
                *machine.printed,
            ],
        )


def _start_nginx(stack: ExitStack, root: Path) -> int:
    """nginx with the site; its port."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(root / "authority.pem"))
    issued = authority.issue_cert("localhost", "127.0.0.1", "127.0.0.2")
    issued.private_key_and_cert_chain_pem.write_to_path(str(root / "site.pem"))
    port = free_port()
    site = _SITE.replace("PORT", str(port)).replace("CERTIFICATE", str(root / "site.pem"))
    (root / "etc/nginx/sites-available/example.com").write_text(site)
    (root / "etc/nginx/sites-enabled/example.com").symlink_to("../sites-available/example.com")
    configuration = root / "etc/nginx/nginx.conf"
    configuration.write_text(_NGINX)
    command = nginx_command(prepared(configuration))
    stack.enter_context(running(command, root / "nginx.log", lambda: listens(port)))
    return port


def _start_redis(stack: ExitStack, root: Path, port: str) -> None:
    """The database."""
    options = ["--bind", _DATABASE, "--port", port, "--save", "", "--dir", str(root)]

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((_DATABASE, int(port))) == 0

    stack.enter_context(running([program("redis-server"), *options], root / "redis.log", answers))


def _fill_path(machine: Machine, running_sshd: Sshd) -> None:
    """Give the user the commands that are not the system's own."""
    for name in ("http2tcp", "websocat"):
        machine.link(name, Path(sys.executable).parent / name)
    machine.wrap("sudo", 'exec "$@"')
    directory = machine.root / "etc/nginx"
    nginx = nginx_command(directory / "nginx.conf")
    # A reload takes effect a moment later, and a test types faster than a person.
    machine.wrap(
        "nginx",
        f"pid=$(cat {directory}/nginx.pid)",
        "before=$(cat /proc/$pid/task/$pid/children)",
        f'{" ".join(nginx[:-2])} -g "pid {directory}/nginx.pid;" "$@" || exit',
        '[ "$*" != "-s reload" ] || for worker in $before; do while [ -e /proc/$worker ]; do sleep 0.05; done; done',
    )
    server = machine.root / "left-running-0"
    machine.wrap("systemctl", '[ "$1" = reload ] && exec "reload-$2"')
    machine.wrap(
        "reload-http2tcp",
        f"before=$(grep -c SIGHUP {server})",
        f"kill -HUP $(cat {server}.pid) || exit",
        f"while [ $(grep -c SIGHUP {server}) = $before ]; do sleep 0.05; done",
    )
    keys = running_sshd.directory
    options = f"-F ~/.ssh/config -o Port={running_sshd.port} -o IdentityFile={keys}/user -o IdentitiesOnly=yes"
    options += f" -o UserKnownHostsFile={keys}/known_hosts -o HostKeyAlias=sshd-behind-http2tcp -o BatchMode=yes"
    for name in ("ssh", "scp"):
        machine.wrap(name, f'exec {program(name)} {options} "$@"')


def _intranet(connection: socket.socket) -> None:
    """A web server with one page."""
    connection.recv(65536)
    page = b"the intranet's page\n"
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(page), page))
