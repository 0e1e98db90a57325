"""A bucket of an S3-compatible service as an object store: AWS, OCI Object Storage, MinIO, Ceph.

Every request signs the SHA-256 of its body, so a store refuses bytes that changed on the way; what was put is read back
and compared, because what a store notes of an object differs from service to service and an ETag is no checksum.
Requests go to the declared host alone. Checksums beyond that are sent only where S3 demands them: OCI refuses others.
"""

# boto3 and botocore come without types
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import configparser
import hashlib
import io
import random
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import boto3.session
import botocore.exceptions as botocore_errors
from botocore.config import Config
from botocore.parsers import ResponseParserError

from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.files import CHUNK_BYTES
from tunesmith.storage.objects import (
    Listing,
    Location,
    ObjectInfo,
    Progress,
    Received,
    Stopped,
    check_key,
    new_file,
    object_damaged,
    object_not_found,
    object_too_large,
    source_damaged,
)

PART_BYTES = 16 << 20
MAXIMUM_PARTS = 9000  # S3 takes 10,000
PARTS_AT_ONCE = 4
READ_BACKS = 3
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0
CONNECT_SECONDS = 5
READ_SECONDS, SHORTEST_READ_SECONDS = 30.0, 5.0
DEFAULT_REGION = "us-east-1"  # what compatible services expect in a signature when none is named
# those that we read; boto3's own chain reads more
AWS_VARIABLES = frozenset({
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION",
    "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE",
})  # fmt: skip
AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")
SHA256_NAME = "sha256"  # of the object's metadata

PASSING_CODES = frozenset({
    "InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "OperationAborted",
    "XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody", "ServerBusy", "TooManyRequests", "Throttling",
})  # fmt: skip
CREDENTIAL_CODES = frozenset({
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
    "AuthFailure", "NotAuthenticated", "InvalidSecurity", "UnrecognizedClientException", "401",
})  # fmt: skip
ELSEWHERE_CODES = frozenset({
    "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException",
    "301", "302", "307", "308",
})  # fmt: skip
FULL_CODES = frozenset({"QuotaExceeded", "XMinioStorageFull", "EntityTooLarge", "507"})
NOT_BUILT_CODES = frozenset({"NotImplemented", "MethodNotAllowed", "405", "501"})
CONNECTION_ERRORS = (
    botocore_errors.HTTPClientError,
    botocore_errors.ConnectionError,
    botocore_errors.ResponseStreamingError,
    botocore_errors.IncompleteReadError,
    ResponseParserError,  # an error page of something in between
)


# Without one it is somebody else's 200: a captive portal or a proxy would pass for an object that is there.
ANSWERED_WITH_ETAG = frozenset({"head_object", "get_object", "put_object", "upload_part", "complete_multipart_upload"})
NO_CREDENTIALS = (
    botocore_errors.NoCredentialsError,
    botocore_errors.PartialCredentialsError,
    botocore_errors.CredentialRetrievalError,
)


class _Elsewhere(Exception):
    """A request was about to go to another host than the declared one."""


def open_bucket(
    bucket: str,
    location: Location,
    environment: Mapping[str, str],
    *,
    retry_seconds: float,
    stop: threading.Event | None = None,
) -> S3Store:
    """Raises InputRefused (BAD_CREDENTIALS_REFERENCE, BAD_ENDPOINT). Asks the network nothing."""
    endpoint = (
        location.endpoint_url or environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or None
    )
    if endpoint is not None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise InputRefused(
                "BAD_ENDPOINT",
                "The endpoint of the object storage is no URL of a service.",
                field="AWS_ENDPOINT_URL",
                hint="Write https://host or http://host:port.",
            )
    region = location.region or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    profile, keys = _credentials(location.credentials, environment)
    make_session: Any = boto3.session.Session  # boto3 has no types
    try:
        session = make_session(profile_name=profile, region_name=region, **keys)
        client = session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region or session.region_name or DEFAULT_REGION,
            verify=environment.get("AWS_CA_BUNDLE"),
            config=Config(
                signature_version="s3v4",
                connect_timeout=CONNECT_SECONDS,
                read_timeout=min(READ_SECONDS, max(SHORTEST_READ_SECONDS, retry_seconds)),
                retries={"total_max_attempts": 1, "mode": "standard"},  # ours have a budget over all
                max_pool_connections=PARTS_AT_ONCE + 2,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                # a name before the host needs its own DNS entry and certificate: only AWS has them
                s3={"addressing_style": "path" if endpoint else "auto", "payload_signing_enabled": True},
            ),
        )
    except botocore_errors.BotoCoreError as error:
        raise InputRefused(
            "BAD_CREDENTIALS_REFERENCE",
            "The credentials or the settings for the object storage cannot be read.",
            field="credentials",
            hint="Check AWS_PROFILE and the files that it names.",
        ) from error
    host = str(urlsplit(str(client.meta.endpoint_url)).netloc)

    def keep_to_host(request: Any, **_: Any) -> None:
        asked = str(urlsplit(str(request.url)).netloc)
        if asked != host and not (host.endswith(AWS_HOSTS) and asked.endswith(AWS_HOSTS)):
            raise _Elsewhere

    def answer_nothing(**_: Any) -> Any:
        return SimpleNamespace(status_code=200), {"ResponseMetadata": {"HTTPHeaders": {}}}

    client.meta.events.register("before-send.s3", keep_to_host)
    # botocore alone asks this, to follow a redirect; redirected itself, it asks again without end
    client.meta.events.register("before-call.s3.HeadBucket", answer_nothing)
    return S3Store(client, bucket, retry_seconds=retry_seconds, stop=stop)


def _credentials(reference: str | None, environment: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """The profile to use and the keys to use: both empty where boto3's own chain is to find them."""
    names = ("access_key_id", "secret_access_key", "session_token")
    kind, _, name = (reference or "env:AWS").partition(":")
    values: Mapping[str, str | None] = {}
    if kind == "profile" and name:
        return name, {}
    if kind == "env" and name:
        values = {key: environment.get(f"{name}_{key.upper()}") for key in names}
    elif kind == "file" and name:
        parser = configparser.ConfigParser(interpolation=None)
        with suppress(OSError, UnicodeDecodeError, configparser.Error):
            parser.read_string(Path(name).read_text())
        values = {key: parser.get("default", f"aws_{key}", fallback=None) for key in names}
    if values.get("access_key_id") and values.get("secret_access_key"):
        return None, {f"aws_{key}": value for key, value in values.items() if value}
    if reference is not None:
        raise InputRefused(
            "BAD_CREDENTIALS_REFERENCE",
            f"The credentials reference {reference[:100]!r} leads to no key.",
            field="credentials",
            hint="Write env:NAME with NAME_ACCESS_KEY_ID and NAME_SECRET_ACCESS_KEY set where the service runs, "
            "profile:NAME, or file:PATH with a [default] section.",
        )
    return environment.get("AWS_PROFILE"), {}


class S3Store:
    """`ObjectStore` over one bucket. Safe for several threads."""

    def __init__(self, client: Any, bucket: str, *, retry_seconds: float, stop: threading.Event | None = None) -> None:
        self._client = client
        weakref.finalize(self, client.close)  # its connections end with the store, not some time later
        self._bucket = bucket
        self._retry_seconds = retry_seconds
        self._stop = stop or threading.Event()

    @property
    def identity(self) -> str:
        return f"{self._client.meta.endpoint_url}/{self._bucket}"

    def uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}" if key else f"s3://{self._bucket}"

    def put_file(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> str | None:
        size = path.stat().st_size
        for _ in range(READ_BACKS):
            with path.open("rb") as source:
                if size <= PART_BYTES:
                    content = source.read()
                    if hashlib.sha256(content).hexdigest() != sha256:
                        raise source_damaged(path)
                    version_id = self._put(key, content, sha256)
                    if progress is not None:
                        progress(size, size)
                else:
                    version_id = self._put_parts(key, source, path, size, sha256, progress)
            if self.verify(key, sha256, version_id=version_id):
                return version_id
            with suppress(TunesmithError):
                self.delete(key, version_id)
        raise object_damaged(self.uri(key))

    def put_bytes(self, key: str, content: bytes) -> str | None:
        return self._put(key, content, hashlib.sha256(content).hexdigest())

    def get_file(
        self,
        key: str,
        path: Path,
        *,
        version_id: str | None = None,
        expected_sha256: str | None = None,
        maximum_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> Received:
        with new_file(path) as sink:
            for _ in range(READ_BACKS):
                received, noted = self._receive(key, version_id, sink, maximum_bytes, progress)
                if received.sha256 == (expected_sha256 or noted or received.sha256):
                    return received
            raise object_damaged(self.uri(key))

    def get_bytes(self, key: str, *, version_id: str | None = None, maximum_bytes: int) -> bytes:
        sink = io.BytesIO()
        received, noted = self._receive(key, version_id, sink, maximum_bytes, None)
        if noted not in (None, received.sha256):
            raise object_damaged(self.uri(key))
        return sink.getvalue()

    def verify(self, key: str, sha256: str, *, version_id: str | None, progress: Progress | None = None) -> bool:
        return self._receive(key, version_id, None, None, progress)[0].sha256 == sha256

    def head(self, key: str, version_id: str | None = None) -> ObjectInfo:
        answer = self._call("head_object", _versioned(version_id), key=key)
        return _info(key, answer)

    def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 1000, by_folder: bool = False
    ) -> Listing:
        asked: dict[str, Any] = {"Prefix": prefix, "MaxKeys": min(limit, 1000)}
        if after is not None:
            asked["ContinuationToken"] = after
        if by_folder:
            asked["Delimiter"] = "/"
        answer = self._call("list_objects_v2", asked)
        return Listing(
            objects=[_info(found["Key"], found) for found in answer.get("Contents", [])],
            folders=[found["Prefix"] for found in answer.get("CommonPrefixes", [])],
            next=answer.get("NextContinuationToken") if answer.get("IsTruncated") else None,
        )

    def delete(self, key: str, version_id: str | None = None) -> None:
        # one object a request: DeleteObjects demands a checksum that OCI refuses
        self._call("delete_object", _versioned(version_id), key=key, is_write=True)

    def versions(self, key: str) -> list[ObjectInfo]:
        found: list[ObjectInfo] = []
        asked: dict[str, Any] = {"Prefix": key}
        while True:
            answer = self._call("list_object_versions", asked)
            listed = answer.get("Versions", [])
            found += [_info(key, version) for version in listed if version["Key"] == key]
            # other keys that begin with this one sort after it
            if not answer.get("IsTruncated") or any(version["Key"] != key for version in listed):
                return found
            asked |= {"KeyMarker": answer["NextKeyMarker"], "VersionIdMarker": answer["NextVersionIdMarker"]}

    def keeps_versions(self) -> bool | None:
        try:
            answer = self._call("get_bucket_versioning", {})
        except _NotBuilt:
            return None
        except MachineCannot as error:
            if error.code != "LOCATION_NOT_READABLE":  # may write there, may not ask this
                raise
            return None
        return answer.get("Status") == "Enabled"

    def _put(self, key: str, content: bytes, sha256: str) -> str | None:
        asked = {"Body": content, "Metadata": {SHA256_NAME: sha256}}
        answer = self._call("put_object", asked, key=key, is_write=True)
        return _version_of(answer)

    def _put_parts(
        self, key: str, source: BinaryIO, path: Path, size: int, sha256: str, progress: Progress | None
    ) -> str | None:
        part_bytes = max(PART_BYTES, -(-size // MAXIMUM_PARTS))
        asked: dict[str, Any] = {"Metadata": {SHA256_NAME: sha256}}
        upload = str(self._call("create_multipart_upload", asked, key=key, is_write=True)["UploadId"])
        digest, done = hashlib.sha256(), 0
        parts: list[dict[str, Any]] = []
        waiting: list[tuple[int, int, Future[Any]]] = []

        def collect() -> None:
            nonlocal done
            number, part_size, future = waiting.pop(0)
            parts.append({"PartNumber": number, "ETag": future.result()["ETag"]})
            done += part_size
            if progress is not None:
                progress(done, size)

        try:
            with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
                try:
                    while content := source.read(part_bytes):
                        digest.update(content)
                        if len(waiting) == PARTS_AT_ONCE:
                            collect()
                        number = len(parts) + len(waiting) + 1
                        asked = {"UploadId": upload, "PartNumber": number, "Body": content}
                        future = pool.submit(self._call, "upload_part", asked, key=key, is_write=True)
                        waiting.append((number, len(content), future))
                    while waiting:
                        collect()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            if digest.hexdigest() != sha256:
                raise source_damaged(path)
            self._abort_others(key, upload)  # before ours is whole: after it nobody would come back to this key
            version_id = self._complete(key, upload, parts, sha256)
        except BaseException:
            with suppress(Exception):  # the first fault counts; what stays is aborted by the next put
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
            raise
        return version_id

    def _complete(self, key: str, upload: str, parts: list[dict[str, Any]], sha256: str) -> str | None:
        asked = {"UploadId": upload, "MultipartUpload": {"Parts": parts}}
        try:
            answer = self._call("complete_multipart_upload", asked, key=key, is_write=True)
        except InputRefused as error:
            # the first try was done and its answer lost: the upload is gone, and the object is there
            if error.code != "OBJECT_NOT_FOUND":
                raise
            found = self.head(key)
            if found.sha256 != sha256:
                raise
            return found.version_id
        if (version_id := _version_of(answer)) is not None:
            return version_id
        # Ceph tells the version of an object put in parts only to those who ask for the object
        found = self.head(key)
        return found.version_id if found.sha256 == sha256 else None

    def _abort_others(self, key: str, upload: str) -> None:
        """Parts of killed puts cost money and are seen by nobody. One key has one writer here: its job."""
        with suppress(InputRefused, MachineCannot):
            for other in self._call("list_multipart_uploads", {"Prefix": key}).get("Uploads", []):
                if other["Key"] == key and other["UploadId"] != upload:
                    self._call("abort_multipart_upload", {"UploadId": other["UploadId"]}, key=key, is_write=True)

    def _receive(
        self,
        key: str,
        version_id: str | None,
        sink: BinaryIO | None,
        maximum_bytes: int | None,
        progress: Progress | None,
    ) -> tuple[Received, str | None]:
        """The whole object into the emptied sink, gone on with where a connection broke; and the hash noted with it."""
        digest, done, size, etag, noted = hashlib.sha256(), 0, -1, "", None
        retries = _Retries(self._retry_seconds, self._stop)
        if sink is not None:
            sink.seek(0)
            sink.truncate()
        while done != size:
            asked = _versioned(version_id) | ({"Range": f"bytes={done}-", "IfMatch": etag} if done else {})
            answer = self._call("get_object", asked, key=key)
            if not done:
                size, etag, noted = int(answer["ContentLength"]), answer["ETag"], _noted(answer)
                version_id = version_id or _version_of(answer)
            before = done
            try:
                with answer["Body"] as body:
                    if maximum_bytes is not None and size > maximum_bytes:
                        raise object_too_large(self.uri(key), size, maximum_bytes)
                    while chunk := body.read(CHUNK_BYTES):
                        if self._stop.is_set():
                            raise Stopped
                        done += len(chunk)
                        if done > size:
                            raise object_damaged(self.uri(key))
                        digest.update(chunk)
                        if sink is not None:
                            sink.write(chunk)
                        if progress is not None:
                            progress(done, size)
                if size == 0:
                    break
            except CONNECTION_ERRORS as error:
                if done > before:  # it goes on, if slowly
                    retries = _Retries(self._retry_seconds, self._stop)
                retries.wait(self._unreachable("the connection broke"), error)
        return Received(size=size, sha256=digest.hexdigest(), version_id=version_id), noted

    def _call(self, name: str, asked: Mapping[str, Any], *, key: str | None = None, is_write: bool = False) -> Any:
        """One operation, tried again until it is answered or the time for it is used up."""
        version_id = asked.get("VersionId")
        asked = {"Bucket": self._bucket, **asked} | ({} if key is None else {"Key": check_key(key)})
        retries = _Retries(self._retry_seconds, self._stop)
        operation = getattr(self._client, name)
        while True:
            if self._stop.is_set():
                raise Stopped
            try:
                answer: Any = operation(**asked)
                if name not in ANSWERED_WITH_ETAG or answer.get("ETag"):
                    return answer
                with suppress(KeyError):
                    answer["Body"].close()
                retries.wait(self._unreachable("its answer is none of S3"), None)
            except botocore_errors.ClientError as error:
                response: Any = error.response
                status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
                code = str(response.get("Error", {}).get("Code", ""))
                if not (status >= 500 and status != 507 and code not in NOT_BUILT_CODES) and (
                    status != 429 and code not in PASSING_CODES
                ):
                    raise self._refusal(code, status, key, version_id, is_write=is_write) from error
                retries.wait(self._unreachable(f"it answered with HTTP status {status}"), error)
            except NO_CREDENTIALS as error:
                raise _no_credentials() from error
            except botocore_errors.SSLError as error:
                raise self._unreachable("its certificate is not trusted here") from error
            except _Elsewhere as error:
                raise self._elsewhere() from error
            except CONNECTION_ERRORS as error:
                retries.wait(self._unreachable("no answer came"), error)
            except botocore_errors.BotoCoreError as error:
                raise self._unreachable("its answer is none of S3") from error

    def _refusal(self, code: str, status: int, key: str | None, version_id: str | None, *, is_write: bool) -> Exception:
        """What a store refused, in our words: its own may hold anything."""
        if code in NOT_BUILT_CODES or status in (405, 501):
            return _NotBuilt("NOT_BUILT", f"The store of {self.uri('')} does not know this request.")
        if code == "NoSuchBucket" or (status == 404 and key is None):
            return InputRefused(
                "BUCKET_NOT_FOUND",
                f"There is no bucket {self._bucket!r} at {self._client.meta.endpoint_url}.",
                hint="Check its name, AWS_ENDPOINT_URL and AWS_REGION, or make the bucket with versioning enabled.",
            )
        if status == 404 or (status == 400 and version_id):
            return object_not_found(self.uri(key or ""), version_id)
        if code in ELSEWHERE_CODES or 300 <= status < 400:
            return self._elsewhere()
        if code in CREDENTIAL_CODES or status == 401:
            return MachineCannot(
                "CREDENTIALS_REFUSED",
                f"The store of {self.uri('')} does not take the credentials: unknown, wrong or expired.",
                hint="Renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or what the location names.",
            )
        if code in FULL_CODES or status == 507:
            return MachineCannot(
                "LOCATION_FULL", f"{self.uri('')} takes no more bytes.", hint="Free some space or raise its quota."
            )
        if status == 403:
            return MachineCannot(
                "LOCATION_NOT_WRITABLE" if is_write else "LOCATION_NOT_READABLE",
                f"The credentials may not {'write' if is_write else 'read'} in {self.uri('')}.",
                hint="Give them s3:GetObject, s3:GetObjectVersion, s3:PutObject, s3:DeleteObjectVersion and "
                "s3:ListBucket there. A wrong bucket name is answered like this, too.",
            )
        return self._unreachable(f"it refused the request with HTTP status {status}")

    def _unreachable(self, why: str) -> MachineCannot:
        return MachineCannot(
            "LOCATION_UNREACHABLE",
            f"The store of {self.uri('')} at {self._client.meta.endpoint_url} cannot be used: {why}.",
            hint="Check AWS_ENDPOINT_URL, the network and the store.",
        )

    def _elsewhere(self) -> InputRefused:
        return InputRefused(
            "BUCKET_ELSEWHERE",
            f"{self.uri('')} is not served at {self._client.meta.endpoint_url}; no request follows to another host.",
            hint="Set AWS_REGION to the bucket's region, or AWS_ENDPOINT_URL to the address that serves it.",
        )


class _NotBuilt(MachineCannot):
    """The service lacks an operation."""


class _Retries:
    """Waits with full jitter between tries, until the time for them all is used up."""

    def __init__(self, seconds: float, stop: threading.Event) -> None:
        self._seconds = seconds
        self._stop = stop
        self._deadline: float | None = None
        self._longest = FIRST_WAIT_SECONDS

    def wait(self, refusal: MachineCannot, error: Exception | None) -> None:
        """Raises the refusal where no time is left. The time runs from the first fault."""
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._seconds
        seconds = random.uniform(self._longest / 2, self._longest)
        if now + seconds > self._deadline:
            raise refusal from error
        if self._stop.wait(seconds):
            raise Stopped from error
        self._longest = min(self._longest * 2, LONGEST_WAIT_SECONDS)


def _no_credentials() -> MachineCannot:
    return MachineCannot(
        "CREDENTIALS_REFUSED",
        "There are no credentials for the object storage.",
        field="AWS_ACCESS_KEY_ID",
        hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
    )


def _versioned(version_id: str | None) -> dict[str, str]:
    return {} if version_id is None else {"VersionId": version_id}


def _version_of(answer: Any) -> str | None:
    version_id = answer.get("VersionId")
    return version_id if version_id and version_id != "null" else None  # "null": the bucket keeps no versions


def _noted(answer: Any) -> str | None:
    noted = answer.get("Metadata", {}).get(SHA256_NAME)
    return noted if isinstance(noted, str) and len(noted) == 64 else None


def _info(key: str, answer: Any) -> ObjectInfo:
    modified = answer.get("LastModified")
    return ObjectInfo(
        key=key,
        size=int(answer.get("ContentLength", answer.get("Size", 0))),
        version_id=_version_of(answer),
        etag=answer.get("ETag"),
        modified_at=modified.isoformat(timespec="seconds") if isinstance(modified, datetime) else "",
        sha256=_noted(answer),
    )
