"""The stores that one suite runs against: a folder, moto, moto behind OCI's rules, and a real Ceph gateway."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3.session
import pytest

from tests.servers import ceph
from tests.servers.moto import moto_server
from tests.servers.proxy import Proxy, proxy_server
from tunesmith.storage.objects import Location, ObjectStore, open_objects

clients: list[Any] = []  # of one test
names = (f"bucket-{number}" for number in itertools.count(1))


@dataclass(frozen=True)
class Service:
    """An S3 service to test against: `url` as the product sees it, `direct` to prepare buckets."""

    url: str
    direct: str
    access_key: str = "test"
    secret_key: str = "test"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }

    def client(self) -> Any:
        session = boto3.session.Session(self.access_key, self.secret_key, region_name="us-east-1")
        client: Any = session.client("s3", endpoint_url=self.direct)
        clients.append(client)
        return client

    def bucket(self, *, versioning: str | None = "Enabled") -> str:
        """A new bucket."""
        name, client = next(names), self.client()
        client.create_bucket(Bucket=name)
        if versioning is not None:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": versioning})
        return name

    def store(self, bucket: str, *, retry_seconds: float = 5.0, stop: threading.Event | None = None) -> ObjectStore:
        return open_objects(f"s3://{bucket}", self.environment, retry_seconds=retry_seconds, stop=stop)[0]


@pytest.fixture(scope="session", autouse=True)
def without_credentials_of_this_machine() -> Generator[None]:
    """No test may reach what the machine's own settings name."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture(autouse=True)
def no_connection_is_left_open() -> Generator[None]:
    yield
    while clients:
        clients.pop().close()


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Generator[Service]:
    with moto_server(tmp_path_factory.mktemp("moto")) as url:
        yield Service(url=url, direct=url)


@pytest.fixture(scope="session")
def oci(moto: Service) -> Generator[Service]:
    with proxy_server(moto.url, oci_rules=True) as proxy:
        yield Service(url=proxy.url, direct=moto.url)


@pytest.fixture(scope="session")
def ceph_service(tmp_path_factory: pytest.TempPathFactory) -> Generator[Service]:
    if missing := ceph.missing_programs():
        pytest.skip(f"Ceph is not installed here ({', '.join(missing)}): apt-get install ceph-mon ceph-osd radosgw")
    with ceph.ceph_gateway(tmp_path_factory.mktemp("ceph")) as url:
        yield Service(url=url, direct=url, access_key=ceph.ACCESS_KEY, secret_key=ceph.SECRET_KEY)


SERVICES = [
    pytest.param("moto", marks=pytest.mark.servers),
    pytest.param("oci", marks=pytest.mark.servers),
    pytest.param("ceph_service", marks=pytest.mark.servers),
]


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> Service:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["folder", *SERVICES])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Location, dict[str, str]]:
    """A fresh location that keeps versions, and the environment to reach it."""
    if request.param == "folder":
        (tmp_path / "store").mkdir()
        return Location(uri=(tmp_path / "store").as_uri()), {}
    found: Service = request.getfixturevalue(request.param)
    return Location(uri=f"s3://{found.bucket()}/team"), found.environment


@pytest.fixture
def store(location: tuple[Location, dict[str, str]]) -> ObjectStore:
    return open_objects(*location, retry_seconds=5.0)[0]


@pytest.fixture
def troubled(moto: Service) -> Generator[tuple[Service, Proxy]]:
    """moto behind a proxy whose `faults` a test sets."""
    with proxy_server(moto.url) as proxy:
        yield Service(url=proxy.url, direct=moto.url), proxy


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[[bytes], tuple[Path, str]]:
    import hashlib

    def make(content: bytes) -> tuple[Path, str]:
        path = tmp_path / "source.bin"
        path.write_bytes(content)
        return path, hashlib.sha256(content).hexdigest()

    return make
