"""The Hugging Face Hub, through its own library: search, one commit of a model, the bytes of a file.

In: the environment (HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE). Out: spec models, or refusals in our words;
what the hub wrote is never shown. Only control reaches the hub, and only the endpoint that its administrator set. A
file goes on where it ended, and counts once its hash is the one that the commit names.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from tunesmith.errors import InputRefused, MachineCannot
from tunesmith.files import CHUNK_BYTES, fsync_folder
from tunesmith.spec.explorer import labels_of
from tunesmith.spec.hub import HubFile, HubModel, HubQuery
from tunesmith.storage.objects import check_key, disk_fault

DEFAULT_ENDPOINT = "https://huggingface.co"
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
LOOK_SECONDS = 10.0
MAXIMUM_FILES = 5000
PIECE_BYTES = 256 << 10
EXPANDED = ["author", "downloads", "likes", "lastModified", "gated", "pipeline_tag", "tags", "safetensors", "config"]
_session_lock = threading.Lock()
_session_is_ours = False


class Hub:
    """One endpoint. Every call raises MachineCannot (HUB_OFFLINE, HUB_UNREACHABLE), InputRefused (HUB_NOT_FOUND,
    HUB_REVISION_NOT_FOUND, HUB_GATED, HUB_REFUSED).
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.endpoint = (environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self._is_offline = environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        self._token = _token(environment)

    def search(self, query: HubQuery) -> list[HubModel]:
        bounds = [
            f"{name}:{value}"
            for name, value in (("min", query.minimum_parameters), ("max", query.maximum_parameters))
            if value is not None
        ]
        with self._asking(query.search or "the list of models") as api:
            self._require_answer()  # the library's list tries a hub that is not there, or broken, for half a minute
            found: Iterable[Any] = api.list_models(
                search=query.search,
                author=query.author,
                pipeline_tag=query.task,
                filter=f"license:{query.licence}" if query.licence else None,
                num_parameters=",".join(bounds) or None,
                sort=query.sort,
                limit=query.limit,
                expand=cast(Any, EXPANDED),
            )
            return [_model(info) for info in found]

    def _require_answer(self) -> None:
        from huggingface_hub.utils import get_session

        status = get_session().head(f"{self.endpoint}/api/models", follow_redirects=False).status_code
        if _may_pass(status):
            raise _unreachable(self.endpoint, f"it answers with status {status}")

    def look(self, hub_id: str, revision: str) -> tuple[HubModel, str, list[HubFile]]:
        """The model, the commit that `revision` is now, and the commit's files."""
        with self._asking(hub_id, revision) as api:
            info = api.model_info(hub_id, revision=revision, files_metadata=True, timeout=LOOK_SECONDS)
        siblings: list[Any] = info.siblings or []
        if info.sha is None or len(siblings) > MAXIMUM_FILES:
            raise InputRefused(
                "HUB_REFUSED", f"{hub_id} names no commit, or more than {MAXIMUM_FILES} files.", field="hub_id"
            )
        files = [
            HubFile(
                path=check_key(each.rfilename, field="hub_id"),
                size=each.size or 0,
                sha256=each.lfs.sha256 if each.lfs is not None else None,
                blob_id=each.blob_id if each.lfs is None else None,
            )
            for each in siblings
        ]
        return _model(info), info.sha, files

    def fetch_file(
        self, hub_id: str, commit: str, file: HubFile, path: Path, *, progress: Callable[[int], None]
    ) -> None:
        """The file's bytes as `path`, which has its name once they are whole, durable and of the right hash.

        What an earlier call received stays in `path` with `.part` at its end, and is gone on from. progress: told the
        bytes of this file that are here; may raise to end the transfer. Raises also MachineCannot (HUB_DAMAGED,
        DISK_FULL).
        """
        from huggingface_hub import errors, file_download, hf_hub_url, utils

        http_get: Callable[..., None] = cast(Any, file_download).http_get
        headers: dict[str, str] = cast(Any, utils).build_hf_headers(
            token=self._token or False, library_name="tunesmith"
        )

        if path.is_file() and path.stat().st_size == file.size:
            progress(file.size)
            return
        part = path.with_name(path.name + ".part")
        with self._asking(hub_id, commit) as _:
            try:
                part.parent.mkdir(parents=True, exist_ok=True)
                have = part.stat().st_size if part.exists() else 0
                if have > file.size:
                    part.unlink()
                    have = 0
                with part.open("ab") as handle:
                    if have < file.size:
                        http_get(
                            hf_hub_url(hub_id, file.path, revision=commit, endpoint=self.endpoint),
                            handle,
                            resume_size=have,
                            headers=headers,
                            expected_size=file.size,
                            tqdm_class=_reporting(progress, have),
                        )
                    handle.flush()
                    os.fsync(handle.fileno())
                if not _is_right(part, file):
                    part.unlink()
                    raise MachineCannot(
                        "HUB_DAMAGED",
                        f"{file.path} of {hub_id} came with other bytes than the commit names.",
                        field="hub_id",
                        hint="It is downloaded anew at the next try; if it happens again, ask who runs the hub.",
                    )
                part.replace(path)
                fsync_folder(path.parent)
                progress(file.size)
            except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled):
                raise  # the library's faults are OSErrors, too
            except OSError as error:
                if "Consistency check" in str(error):  # the library's word for a body that ended early
                    raise _unreachable(self.endpoint) from error
                raise disk_fault(error) from error

    @contextmanager
    def _asking(self, what: str, revision: str | None = None) -> Generator[Any]:
        """The library's client, its faults in our words."""
        if self._is_offline:
            raise MachineCannot(
                "HUB_OFFLINE", "The hub is switched off here (HF_HUB_OFFLINE).", field="hub_id",
                hint="Unset HF_HUB_OFFLINE for the server, or register a folder.",
            )  # fmt: skip
        import httpx2
        from huggingface_hub import HfApi, errors

        _prepare_session()
        try:
            yield HfApi(endpoint=self.endpoint, token=self._token or False, library_name="tunesmith")
        except errors.GatedRepoError as error:
            raise InputRefused(
                "HUB_GATED",
                f"{what} is gated: the hub gives it only to accounts that accepted its terms.",
                field="hub_id",
                hint=f"Accept them on {self.endpoint}/{what}, then start the server with HF_TOKEN of that account."
                if self._token is None
                else f"Accept them on {self.endpoint}/{what} with the account of the server's HF_TOKEN.",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise InputRefused(
                "HUB_REVISION_NOT_FOUND", f"{what} has no revision {revision!r}.", field="revision",
                hint="Name a branch, a tag or a commit of it.",
            ) from error  # fmt: skip
        except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.HFValidationError) as error:
            raise InputRefused(
                "HUB_NOT_FOUND",
                f"The hub has no {what!r}, or does not show it to this server.",
                field="hub_id",
                hint="Check its name. A private model needs HF_TOKEN of an account that may read it.",
            ) from error
        except (errors.OfflineModeIsEnabled, httpx2.TransportError) as error:
            raise _unreachable(self.endpoint) from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if _may_pass(status):
                raise _unreachable(self.endpoint, f"it answers with status {status}") from error
            raise InputRefused(
                "HUB_REFUSED", f"The hub refuses to give {what} (status {status}).", field="hub_id",
                hint="Check the server's HF_TOKEN: it may have expired, or lack the right to read.",
            ) from error  # fmt: skip
        except httpx2.HTTPError as error:
            raise _unreachable(self.endpoint) from error
        except ValueError as error:
            raise InputRefused(
                "HUB_REFUSED", f"The hub's answer about {what} cannot be used.", field="hub_id",
                hint="Is HF_ENDPOINT the address of a hub?",
            ) from error  # fmt: skip


def _may_pass(status: int) -> bool:
    return status in (408, 425, 429) or status >= 500


def _unreachable(endpoint: str, why: str = "it does not answer") -> MachineCannot:
    return MachineCannot(
        "HUB_UNREACHABLE",
        f"The hub at {endpoint} cannot be reached: {why}.",
        field="hub_id",
        hint="Check the server's network, its proxy variables and HF_ENDPOINT. Known models, folders and locations "
        "work without it.",
    )


def _token(environment: Mapping[str, str]) -> str | None:
    """HF_TOKEN, or the first line of the file that HF_TOKEN_PATH names."""
    if token := environment.get("HF_TOKEN", "").strip():
        return token
    if named := environment.get("HF_TOKEN_PATH"):
        with contextlib.suppress(OSError):
            return Path(named).read_text(encoding="utf-8").split("\n")[0].strip() or None
    return None


def _prepare_session() -> None:
    """The library's shared session with deadlines: as it comes, a hub that is silent holds a request for ever.

    Plain HTTP carries every file: it goes on at any byte, which the library's own transfer of large files does not.
    """
    global _session_is_ours
    with _session_lock:
        if _session_is_ours:
            return
        import httpx2
        from huggingface_hub import constants, set_client_factory
        from huggingface_hub.utils import disable_progress_bars
        from huggingface_hub.utils import logging as their_logging
        from huggingface_hub.utils._http import default_client_factory

        def client() -> httpx2.Client:
            made = default_client_factory()
            made.timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
            return made

        constants.HF_HUB_DISABLE_XET = True
        constants.DOWNLOAD_CHUNK_SIZE = PIECE_BYTES  # what a broken connection loses, and how often progress is told
        constants.HF_HUB_OFFLINE = False  # decided by `Hub`, from the environment that it was given
        disable_progress_bars()
        their_logging.set_verbosity(50)  # critical: what it has to say comes as an error
        set_client_factory(client)
        _session_is_ours = True


def _reporting(progress: Callable[[int], None], have: int) -> type:
    """A stand-in for the library's progress bar that tells how many bytes of the file are here."""
    done = have

    class Reporting:
        def __init__(self, *_: object, **__: object) -> None:
            progress(done)

        def __enter__(self) -> Reporting:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def update(self, count: int = 1) -> None:
            nonlocal done
            done += count
            progress(done)

        def close(self) -> None:
            return None

    return Reporting


def _is_right(path: Path, file: HubFile) -> bool:
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        digest, wanted = hashlib.sha256(), file.sha256
    elif file.blob_id is not None:
        digest, wanted = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False), file.blob_id
    else:
        return True
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == wanted


def _model(info: Any) -> HubModel:
    config: dict[str, Any] = info.config or {}
    model_type = config.get("model_type")
    architectures = config.get("architectures")
    architecture = str(cast(Any, architectures)[0])[:80] if isinstance(architectures, list) and architectures else None
    tags = cast(list[str], info.tags or [])
    if not isinstance(model_type, str):
        model_type = None
    has_experts = any(word in (model_type or "") for word in ("moe", "mixtral", "gpt_oss", "deepseek_v"))
    return HubModel(
        hub_id=info.id,
        task=info.pipeline_tag,
        licence=next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None),
        is_gated=bool(info.gated),
        parameters=info.safetensors.total if info.safetensors is not None else None,
        model_type=model_type,
        downloads=info.downloads,
        likes=info.likes,
        last_modified=info.last_modified.isoformat() if info.last_modified is not None else None,
        labels=labels_of(model_type, architecture or model_type, has_experts=has_experts, is_here=False, versions=0)
        if model_type is not None
        else [],
    )
