"""Front ends: how to recognise each by its answers, and the lines of configuration that make it pass a tunnel. No I/O.

Loaded only after a failure, or for a check. The lines let through every Upgrade token that the server knows. If the
front end passes any token by default, the lines also block all other tokens. They drop the header fields in which a
client could claim another address. A test compares them with the files in `examples/`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from http2tcp.protocol.transport import TOKENS

#: The http2tcp server's address in the examples.
SERVER = "127.0.0.1:12345"
DEFAULT_PATH = "/~http2tcp/"


class FrontEnd(NamedTuple):
    """A kind of front end."""

    name: str
    #: Matches the `Server` or `Via` field of the front end's answers.
    marks: re.Pattern[str]
    #: Where to put the lines of `template`; or what to do, if there are no lines.
    note: str
    #: Lines of the front end's configuration. `lines` replaces @PATH@, @SERVER@ and the like, and repeats a line with
    #: @TOKEN@ for each Upgrade token.
    template: str = ""


class Recognised(NamedTuple):
    """The front end that probably made or passed an answer."""

    front_end: FrontEnd
    #: True: the answer names the front end. False: it only looks like one of the front end's own pages.
    certain: bool

    def __str__(self) -> str:
        return self.front_end.name if self.certain else f"probably {self.front_end.name}"


def _named(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


NGINX = FrontEnd(
    "nginx",
    _named(r"\b(nginx|openresty|tengine|angie)\b"),
    "These lines go into nginx.conf: the map into its http block, the location into the site's server block.",
    """
http {
    map $http_upgrade $http2tcp_upgrade {
        default "";
        @TOKEN@ @TOKEN@;
    }
    server {
        location @PATH@ {
            proxy_pass http://@SERVER@;
            proxy_http_version 1.1;
            proxy_set_header Connection upgrade;
            proxy_set_header Upgrade $http2tcp_upgrade;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header Forwarded "";
            proxy_intercept_errors off;
            proxy_read_timeout 1d;
            proxy_send_timeout 1d;
            send_timeout 1d;
        }
    }
}
""",
)

APACHE = FrontEnd(
    "Apache",
    _named(r"\bApache(/|$)"),
    "These lines go into the virtual host. They take httpd 2.4.47 or newer, with mod_proxy, mod_proxy_http and "
    "mod_headers.",
    """
<Location "@PATH@">
    ProxyPass "http://@SERVER@@PATH@" upgrade=ANY timeout=86400 retry=0
    ProxyErrorOverride Off
    RequestHeader unset Upgrade "expr=%{HTTP:Upgrade} !~ m#^(@ALTERNATIVES@)$#i"
    RequestHeader unset X-Forwarded-For
    RequestHeader unset Forwarded
</Location>
""",
)

HAPROXY = FrontEnd(
    "HAProxy",
    _named(r"\bhaproxy\b"),
    "It passes every upgrade unless told otherwise. These lines go into haproxy.cfg.",
    """
frontend THE-ONE-THAT-BINDS-THE-PORT
    mode http
    use_backend http2tcp if { path_beg @PATH@ }

backend http2tcp
    mode http
    server http2tcp @SERVER@
    timeout tunnel 1d
    acl known_upgrade req.hdr(Upgrade) -i @LIST@
    acl one_upgrade req.hdr_cnt(Upgrade) eq 1
    http-request del-header Upgrade unless known_upgrade one_upgrade
    http-request set-header X-Forwarded-For %[src]
    http-request del-header Forwarded
""",
)

CADDY = FrontEnd(
    "Caddy",
    _named(r"\bCaddy\b"),
    "It passes every upgrade unless told otherwise. These lines go into the site's block of the Caddyfile.",
    """
handle @PATH@* {
    @unknown_upgrade not expression {header.Upgrade}.matches('(?i)^(@ALTERNATIVES@)$')
    request_header @unknown_upgrade -Upgrade
    reverse_proxy @SERVER@ {
        header_up -Forwarded
    }
}
""",
)

ENVOY = FrontEnd(
    "Envoy",
    _named(r"\b(istio-)?envoy\b"),
    "It refuses every upgrade that is not listed. These lines go into the HttpConnectionManager (Istio: by an "
    "EnvoyFilter).",
    """
route_config:
  virtual_hosts:
  - name: YOURS
    domains: ["*"]
    routes:
    - match: {prefix: "@PATH@"}
      route:
        cluster: http2tcp
        timeout: 0s
        idle_timeout: 86400s
        upgrade_configs:
        - upgrade_type: @TOKEN@
      request_headers_to_remove: [forwarded]
      request_headers_to_add:
      - header: {key: x-forwarded-for, value: "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"}
        append_action: OVERWRITE_IF_EXISTS_OR_ADD
# and a cluster http2tcp, without HTTP/2, whose endpoint is @SERVER@
""",
)

TRAEFIK = FrontEnd(
    "Traefik",
    _named(r"\btraefik\b"),
    "It passes every upgrade unless told otherwise. These lines go into a file of its file provider.",
    """
{{ $tokens := list @QUOTED@ }}
http:
  routers:
    {{ range $number, $token := $tokens }}
    http2tcp-{{ $number }}:
      rule: PathPrefix(`@PATH@`) && HeaderRegexp(`Upgrade`, `(?i)^{{ regexQuoteMeta $token }}$`)
      middlewares: [http2tcp-{{ $number }}]
      service: http2tcp
    {{ end }}
    http2tcp:
      rule: PathPrefix(`@PATH@`)
      middlewares: [http2tcp]
      service: http2tcp
  middlewares:
    {{ range $number, $token := $tokens }}
    http2tcp-{{ $number }}:
      headers: {customRequestHeaders: {Upgrade: {{ $token }}, Forwarded: ""}}
    {{ end }}
    http2tcp:
      headers: {customRequestHeaders: {Upgrade: "", Forwarded: ""}}
  services:
    http2tcp:
      loadBalancer:
        servers:
        - url: http://@SERVER@
""",
)

CLOUDFLARE = FrontEnd(
    "Cloudflare",
    _named(r"\bcloudflare\b"),
    "It passes no upgrade but websocket. Switch WebSockets on in the zone's network settings, and see that what "
    "stands behind it passes websocket too.",
)

GOOGLE = FrontEnd(
    "Google Cloud's load balancer",
    _named(r"^(.* )?1\.1 google\b"),
    "It passes no upgrade but websocket. See that what stands behind it passes websocket, and that the backend "
    "service's timeout is longer than a tunnel lasts.",
)

FRONT_ENDS = (NGINX, HAPROXY, CADDY, APACHE, ENVOY, TRAEFIK, CLOUDFLARE, GOOGLE)

#: The note to show for a front end that is not recognised.
UNKNOWN_NOTE = (
    "Whatever stands in front has to pass the request on in HTTP/1.1, to http2tcp, with its Connection and Upgrade "
    f"fields. The tokens: {', '.join(TOKENS)}. In nginx, for instance, these lines do it."
)


def recognise(fields: Sequence[tuple[str, str]]) -> Recognised | None:
    """Return the front end that made or passed an answer, by the answer's `fields` (names in lower case), or None."""
    values = dict(reversed(fields))
    for name in ("server", "via"):
        for front_end in FRONT_ENDS:
            if front_end.marks.search(values.get(name, "")):
                return Recognised(front_end, certain=True)
    if "server" in values:
        return None
    kind = (values.get("content-type"), values.get("cache-control"), values.get("x-content-type-options"))
    # Only HAProxy's own pages have these two fields and neither Server nor Date.
    if kind == ("text/html", "no-cache", None) and "date" not in values:
        return Recognised(HAPROXY, certain=False)
    # "404 page not found" (19 bytes) is the page of Go's standard library, which Traefik sends if it has no such route.
    if kind == ("text/plain; charset=utf-8", None, "nosniff") and values.get("content-length") == "19":
        return Recognised(TRAEFIK, certain=False)
    return None


def lines(front_end: FrontEnd, path: str = DEFAULT_PATH) -> list[str]:
    """Return the front end's lines of configuration that lead `path` to the server; an empty list if it has none."""
    values = {
        "@PATH@": path,
        "@SERVER@": SERVER,
        "@LIST@": " ".join(TOKENS),
        "@QUOTED@": " ".join(f'"{token}"' for token in TOKENS),
        "@ALTERNATIVES@": "|".join(token.replace(".", "[.]") for token in TOKENS),
    }
    text = front_end.template.strip("\n")
    for name, value in values.items():
        text = text.replace(name, value)
    found = []
    for line in text.splitlines():
        found += [line.replace("@TOKEN@", token) for token in TOKENS] if "@TOKEN@" in line else [line]
    return found
