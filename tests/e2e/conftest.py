"""What the end-to-end tests share: one site a session, and logins through it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.images import Image, images
from tests.support.openssh import Login, sshd
from tests.support.site import Site, issue_certificates, run_site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    certificates = issue_certificates(tmp_path_factory.mktemp("certificates"))
    with sshd(tmp_path_factory.mktemp("sshd")) as running_sshd:
        with run_site(tmp_path_factory.mktemp("site"), certificates, running_sshd) as running_site:
            yield running_site


@pytest.fixture(params=["https", "http"])
def endpoint(request: pytest.FixtureRequest, site: Site) -> str:
    """The site's endpoint, over https and over http."""
    return site.https if request.param == "https" else site.http


@pytest.fixture
def login(site: Site, tmp_path: Path) -> Callable[..., Login]:
    """Make a Login: through the site over https, unless told otherwise."""
    number = itertools.count()

    def make(proxy_command: Sequence[str] | None = None, *, options: Sequence[str] = ()) -> Login:
        directory = tmp_path / f"login{next(number)}"
        return Login(site.sshd, proxy_command or site.client(site.https), directory, options)

    return make


@pytest.fixture(scope="session")
def built() -> Iterator[dict[str, Image]]:
    """The images of examples/docker, by their names there."""
    with images() as made:
        yield made
