"""What the documentation and the examples repeat from the code is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from http2tcp.client import front_ends as advice
from http2tcp.protocol.transport import TOKENS
from http2tcp.server.counters import REFUSALS

ROOT = Path(__file__).parents[2]

WRITTEN = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(file for file in (ROOT / "examples").rglob("*") if file.is_file()),
]
MAP = re.compile(r"map \$http_upgrade \$\w+ \{(.*?)\}", re.DOTALL)
#: The lines of HAProxy, Apache and Caddy.
LISTS = re.compile(r"^.*(?:req\.hdr\(Upgrade\) -i|\{HTTP:Upgrade\} !~|\{header\.Upgrade\}\.matches).*$", re.MULTILINE)


def maps() -> list[tuple[str, str]]:
    """Every nginx map, with the file that it stands in."""
    texts = [(file.name, file.read_text()) for file in WRITTEN]
    texts.append(("advice", "\n".join(advice.lines(advice.NGINX))))
    return [(name, block) for name, text in texts for block in MAP.findall(text)]


def test_an_nginx_map_is_where_a_user_looks_for_one() -> None:
    assert {"README.md", "nginx.md", "nginx.conf", "advice"} <= {name for name, _ in maps()}


@pytest.mark.parametrize(("name", "block"), maps(), ids=[name for name, _ in maps()])
def test_every_nginx_map_passes_every_token_that_the_server_knows(name: str, block: str) -> None:
    entries = [line.strip().rstrip(";").split() for line in block.splitlines() if line.strip()]
    assert entries[0] == ["default", '""']
    assert sorted(entries[1:]) == sorted([token, token] for token in TOKENS)


def lists() -> list[tuple[str, str]]:
    return [(file.name, line) for file in WRITTEN for line in LISTS.findall(file.read_text())]


def test_the_other_front_ends_lists_are_found() -> None:
    names = {"haproxy.md", "haproxy.cfg", "apache.md", "apache.conf", "caddy.md", "Caddyfile"}
    assert {name for name, _ in lists()} == names
    assert len(lists()) == 6


@pytest.mark.parametrize(("name", "line"), lists(), ids=[name for name, _ in lists()])
def test_every_other_front_end_s_list_passes_every_token_that_the_server_knows(name: str, line: str) -> None:
    plain = line.replace("\\.", ".").replace("[.]", ".")
    listed = re.search(r"\(((?:[^()|]+\|)+[^()|]+)\)\$|-i (.*)$", plain)
    assert listed is not None
    assert sorted(re.split(r"[| ]", listed[1] or listed[2])) == sorted(TOKENS)


#: Envoy's list, an entry a line; what Traefik's template is made from.
ENTRIES = re.compile(r"upgrade_type: (\S+)$", re.MULTILINE)
TEMPLATE = re.compile(r"\$tokens := list (.*) \}\}")


@pytest.mark.parametrize("name", ["docs/deploy/envoy.md", "examples/envoy.yaml"])
def test_every_list_of_envoy_s_has_every_token_that_the_server_knows(name: str) -> None:
    assert sorted(ENTRIES.findall((ROOT / name).read_text())) == sorted(TOKENS)


@pytest.mark.parametrize("name", ["docs/deploy/traefik.md", "examples/traefik/http2tcp.yml"])
def test_every_list_of_traefik_s_has_every_token_that_the_server_knows(name: str) -> None:
    (listed,) = TEMPLATE.findall((ROOT / name).read_text())
    assert sorted(listed.split()) == sorted(f'"{token}"' for token in TOKENS)


def test_the_page_of_the_wire_has_every_refusal_with_its_status_and_its_error() -> None:
    page = (ROOT / "docs/wire.md").read_text()
    rows = re.findall(r"^\|[ \w]*\| (\d{3}) \| .+ \| `(\w+)` \|$", page, re.MULTILINE)
    # The first is CONNECT's, which has a section of its own; of the second there is a record and no answer.
    elsewhere = {("407", "http_request_denied"), ("400", "proxy_configuration_error")}
    assert set(rows) == set(REFUSALS) - elsewhere


# --- links ----------------------------------------------------------------------------------------

LINK = re.compile(r"\]\((?!https?://)([^)\s]*)\)")
ABOVE = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = [file for file in (*ABOVE, *WRITTEN) if file.suffix == ".md"]


def anchors(page: Path) -> set[str]:
    """What a forge makes of its headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


# --- who the client is, which anybody could say otherwise ----------------------------------------------

#: A location, of one level, of nginx.
LOCATION = re.compile(r"^[ \t]*location [^\n{]*\{\n(.*?)^[ \t]*\}", re.DOTALL | re.MULTILINE)


def locations() -> list[tuple[str, str]]:
    """Every nginx location that leads to a server, with the file that it stands in."""
    return [
        (file.name, location)
        for file in WRITTEN
        for location in LOCATION.findall(file.read_text())
        if re.search(r"^\s*proxy_pass ", location, re.MULTILINE)
    ]


def test_the_nginx_locations_are_found() -> None:
    assert {name for name, _ in locations()} == {"README.md", "nginx.md", "nginx.conf", "tutorial.md"}


@pytest.mark.parametrize(("name", "location"), locations(), ids=[name for name, _ in locations()])
def test_every_nginx_location_replaces_what_a_client_says_of_its_address(name: str, location: str) -> None:
    lines = [line.strip() for line in location.splitlines()]
    assert [line for line in lines if "X-Forwarded-For" in line and not line.startswith("#")] == [
        "proxy_set_header X-Forwarded-For $remote_addr;"
    ]
    assert 'proxy_set_header Forwarded "";' in lines


#: How the other front ends do it, in their examples and on their pages.
REPLACES = {
    "haproxy.cfg": "http-request set-header X-Forwarded-For %[src]",
    "without-a-client.md": "http-request set-header X-Forwarded-For %[src]",
    "haproxy.md": "http-request set-header X-Forwarded-For %[src]",
    "apache.conf": "RequestHeader unset X-Forwarded-For",
    "apache.md": "RequestHeader unset X-Forwarded-For",
    "envoy.yaml": '{key: x-forwarded-for, value: "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"}',
    "envoy.md": '{key: x-forwarded-for, value: "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"}',
}


@pytest.mark.parametrize(("name", "line"), REPLACES.items())
def test_every_other_front_end_replaces_it_too(name: str, line: str) -> None:
    (text,) = [file.read_text() for file in WRITTEN if file.name == name]
    assert any(line in written and not written.lstrip().startswith("#") for written in text.splitlines())


@pytest.mark.parametrize("name", ["Caddyfile", "caddy.md", "traefik.yml", "http2tcp.yml", "traefik.md"])
def test_caddy_and_traefik_replace_it_as_long_as_nobody_trusts_clients(name: str) -> None:
    (text,) = [file.read_text() for file in WRITTEN if file.name == name]
    assert not re.search(r"^[^#\n]*(trusted_proxies|trustedIPs|insecure: *true)", text, re.MULTILINE)


def test_every_front_end_s_example_starts_a_server_that_believes_it() -> None:
    """Without it the log has the front end's address for everybody, and a ban would be of everybody."""
    commands = {
        file.name: command
        for file in WRITTEN
        if "examples" in file.parts
        for command in re.findall(r"^(?:#\s+|ExecStart=/\S+/)(http2tcp -s .*-.*)$", file.read_text(), re.MULTILINE)
        if "--config" not in command
    }
    front_ends = {"Caddyfile", "apache.conf", "envoy.yaml", "haproxy.cfg", "nginx.conf", "traefik.yml"}
    assert set(commands) == front_ends | {"http2tcp.service", "http2tcp@.service"}
    assert [name for name, command in commands.items() if "--trusted-proxy 127.0.0.1" not in command] == []


# --- files ----------------------------------------------------------------------------------------

#: A file or a folder of the code, as a page names it.
NAMED_FILE = re.compile(r"`((?:http2tcp|tests|examples)/(?!1\.0`)[\w./-]+)`")
GUIDES = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs" / f"{name}.md" for name in ("style", "glossary", "dependencies"))]


@pytest.mark.skipif(not (ROOT / "http2tcp" / "server").is_dir(), reason="the package is still one flat folder")
@pytest.mark.parametrize("page", GUIDES, ids=[page.name for page in GUIDES])
def test_every_file_of_the_code_that_a_guide_names_is_there(page: Path) -> None:
    named = NAMED_FILE.findall(page.read_text())
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs" / "README.md").read_text()
    reached = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in LINK.findall(contents)}
    pages = {file for file in (ROOT / "docs").rglob("*.md") if file != ROOT / "docs" / "README.md"}
    assert {str(page.relative_to(ROOT)) for page in pages - reached} == set()
