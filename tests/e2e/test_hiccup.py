"""nginx answers 404 while the server behind it restarts: the login waits a moment, and loses no promise by it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.support.nginx import nginx
from tests.support.processes import PATIENCE, environment, free_port
from tests.support.site import Site, run_server


def test_a_login_while_the_upstream_restarts_gets_the_best_transport(site: Site, tmp_path: Path) -> None:
    port, upstream = free_port(), tmp_path / "upstream.sock"
    configuration = f"""
events {{}}
http {{
    map $http_upgrade $tunnel {{ default ""; connect-tcp connect-tcp; tcp tcp; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://unix:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $tunnel;
            proxy_set_header Connection upgrade;
            # As an ingress does, whose default backend stands in.
            error_page 502 =404 @default;
        }}
        location @default {{ return 404; }}
    }}
}}
"""
    listening = tmp_path / "server.sock"
    with run_server(tmp_path / "server", listen=f"unix:{listening}") as server:
        with nginx(tmp_path / "nginx", configuration, port) as front:
            more = ["--token-file", str(server.token_file)]
            command = site.client(f"http://127.0.0.1:{port}/", *more, destination=site.sshd.address)
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
            ) as client:
                deadline = time.monotonic() + PATIENCE
                while " 404 " not in front.other_log and time.monotonic() < deadline:
                    time.sleep(0.005)
                # The server is back where nginx looks for it.
                upstream.symlink_to(listening)
                assert client.stdout is not None
                assert client.stdout.readline().startswith(b"SSH-2.0-")
                _, said = client.communicate(timeout=PATIENCE)
    assert said == b""
    assert client.returncode == 0
    assert "transport=connect-tcp" in server.log
    assert "transport=tcp" not in server.log
