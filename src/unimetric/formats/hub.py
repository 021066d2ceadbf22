"""Model folders on a model hub: huggingface.co, or the server that HF_ENDPOINT names.

Only the files of `MODEL_FILES` are fetched, into the cache of the hub's client, and nothing in them is executed.
"""

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimetric.errors import UserError, cause, shown
from unimetric.progress import log_status

MODEL_FILES = ("config.json", "adapter.safetensors", "README.md", "metrics.json", "rotation.safetensors")
"""Files of a model on the hub; all but the first two may be missing."""

_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>\S+))?", re.ASCII)
_PREFIX = "hf:"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class HubError(UserError):
    """The hub refused: a name or a revision that it lacks, or no permission."""


class HubUnreachableError(HubError):
    """No answer from the hub: no network, offline mode, a failing server."""


@dataclass(frozen=True)
class HubName:
    """Name of a model on the hub.

    Attributes:
        repo: ``owner/name``.
        revision: Branch, tag or commit; None for the default branch.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Read ``owner/name`` or ``owner/name@revision``, with or without the prefix ``hf:``."""
        match = _NAME.fullmatch(text.removeprefix(_PREFIX))
        if match is None:
            raise HubError(
                f"{shown(text)} is not a valid name of a model on the hub; write OWNER/NAME or OWNER/NAME@REVISION"
            )
        return cls(match["repo"], match["revision"])

    @classmethod
    def of_path(cls, path: Path) -> "HubName | None":
        """Return the name that a path means, or None for a path on this machine.

        A path means a name if it begins with ``hf:``, or if it has the form of one and nothing of its first part's
        name exists here.

        Raises:
            HubError: it begins with ``hf:`` and goes on with something else than a name.
        """
        text = path.as_posix()
        if text.startswith(_PREFIX):
            return cls.parse(text)
        if path.is_absolute() or _NAME.fullmatch(text) is None or Path(path.parts[0]).exists():
            return None
        return cls.parse(text)


def fetch_model(name: HubName) -> Path:
    """Return the folder of a model, in the cache of the hub's client; it is downloaded if it is not there.

    If the hub cannot be reached, a copy that was fetched before is used, and a note names its commit.

    Raises:
        HubError: the hub has no such model or revision, it is private, or it is not a model of this package.
        HubUnreachableError: no answer, and no copy in the cache.
        UserError: the cache cannot be written.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _quiet_client():
        try:
            with _explained(name):
                about = HfApi().model_info(name.repo, revision=name.revision)
        except HubUnreachableError as error:
            if (copy := _cached(name)) is None:
                raise
            if name.revision is None or not _COMMIT.fullmatch(name.revision):
                log_status(f"note: {error}; using the copy of commit {copy.name[:12]} in the cache", style="yellow")
            return copy
        present = {file.rfilename for file in about.siblings or ()}
        if lacking := [file for file in MODEL_FILES[:2] if file not in present]:
            raise HubError(f"{name} on the hub is not a unimetric model: it has no {lacking[0]}")
        with _explained(name):
            # By its name, which the client records for later runs without a network.
            return Path(snapshot_download(name.repo, revision=name.revision, allow_patterns=list(MODEL_FILES)))


def push_files(
    name: HubName, files: Mapping[str, bytes], *, message: str, private: bool = False, token: str | None = None
) -> str:
    """Write files into one commit of a model on the hub, which is made if it does not exist; return its address.

    The name's revision is the branch, made if it does not exist. ``README.md``, the model card, is validated first.
    Only a new model is made private. By default, the access token is that of HF_TOKEN or of ``hf auth login``.

    Raises:
        HubError: the card is not valid, or the hub refused.
        HubUnreachableError: no answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    with _quiet_client(), _explained(name, writing=True):
        api.create_repo(name.repo, private=private or None, exist_ok=True)
        if name.revision is not None:
            api.create_branch(name.repo, branch=name.revision, exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=content) for file, content in files.items()]
        # It validates the card first, at this hub; `ModelCard.validate` would ask huggingface.co whatever the hub is.
        made = api.create_commit(name.repo, operations, commit_message=message, revision=name.revision)
    return str(made.commit_url)


def _cached(name: HubName) -> Path | None:
    """The complete copy of a model in the client's cache, if there is one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                name.repo, revision=name.revision, allow_patterns=list(MODEL_FILES), local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None
    return folder if all((folder / file).is_file() for file in MODEL_FILES[:2]) else None


@contextmanager
def _explained(name: HubName, writing: bool = False) -> Iterator[None]:
    """Turn the client's errors into one line each, by their types and the status of the answer."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = constants.ENDPOINT
    log_in = "log in with hf auth login, or set HF_TOKEN"
    try:
        yield
    except GatedRepoError as error:
        raise HubError(f"{name} on {hub} is gated: accept its terms on its page, and {log_in}") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"there is no folder {name} here, and no model {name.repo} on {hub}: correct the name; if it is private, "
            f"{log_in}"
            if not writing
            else f"cannot write to {name.repo} on {hub}: {log_in}, with an account that may write there"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(
            f"{name.repo} on {hub} has no revision {shown(name.revision)}; use a branch, a tag or a whole commit"
        ) from error
    except HFValidationError as error:
        raise HubError(f"{shown(name.repo)} is not a valid name of a model on the hub: {cause(error)}") from error
    except OfflineModeIsEnabled as error:
        raise HubUnreachableError(_out_of_reach(name, hub, "HF_HUB_OFFLINE is set", writing)) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise HubError(f"{hub} refused access to {name.repo} ({status}): {log_in}") from error
        if status >= 500 or status in (408, 429):
            raise HubUnreachableError(_out_of_reach(name, hub, f"it answers {status}", writing)) from error
        raise HubError(f"{hub} refused {name} ({status}): {cause(error)}") from error
    # The card's check answers so.
    except ValueError as error:
        raise HubError(f"{hub} refused {name}: {cause(error)}") from error
    # The client's transports (requests, httpx) have error types of their own, which depend on its version.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OWN_DISK:
            raise UserError(f"cannot write the hub's cache {constants.HF_HUB_CACHE}: {error.strerror}") from error
        reason = f"{type(error).__name__}: {cause(error)}"
        raise HubUnreachableError(_out_of_reach(name, hub, reason, writing)) from error


def _out_of_reach(name: HubName, hub: str, reason: str, writing: bool) -> str:
    first = "" if writing else f"there is no folder {name} here, and "
    return f"{first}the model hub {hub} cannot be reached for {name} ({reason})"


@contextmanager
def _quiet_client() -> Iterator[Any]:
    """Silence the client's progress bars and retry messages; they are one line of ours."""
    import logging

    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level, bars = logger.level, not are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bars()
