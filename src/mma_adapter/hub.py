"""The Hugging Face Hub: fetch files of one commit, tell its names from paths, explain refusals."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .errors import StorageError

# Most special first: some are subclasses of others.
_HUB_ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (HFValidationError, "{repo!r} is neither a folder here nor a repository's name (owner/name)"),
    (GatedRepoError, "{repo!r} is gated: ask for access on its page, then pass token="),
    (
        RepositoryNotFoundError,
        "there is no folder {repo!r} here, and no repository of that name on the Hub that you may "
        "use; check the spelling, or pass token= (or run `hf auth login`) if it is private",
    ),
    (RevisionNotFoundError, "{repo!r} has no revision {revision!r}; pass a branch, tag or commit"),
    (
        LocalEntryNotFoundError,
        "there is no folder {repo!r} here, {repo!r} at revision {revision!r} is not in the cache, "
        "and the Hub was not asked or cannot be reached; go online once and load it without "
        "local_files_only",
    ),
    (EntryNotFoundError, "{repo!r} at revision {revision!r} holds no MMA adapter: {error}"),
)


@contextlib.contextmanager
def hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises inside the block into a StorageError with a way out."""
    # The bases of HfHubHTTPError cover failing connections: it subclasses the HTTP client's error.
    kinds: Any = (*(kind for kind, _ in _HUB_ERRORS), *HfHubHTTPError.__bases__, OSError)
    try:
        yield
    except kinds as error:
        text = "the Hub refused {repo!r} or cannot be reached: {error}; check token= and connection"
        text = next((text for kind, text in _HUB_ERRORS if isinstance(error, kind)), text)
        values = {"repo": repo, "revision": revision or "main", "error": error}
        raise StorageError(text.format(**values)) from error


def fetch(
    repo: str,
    names: Sequence[str],
    *,
    revision: str | None,
    token: str | bool | None,
    local_files_only: bool,
) -> list[Path]:
    """Download files of one commit into the cache and return where they are.

    Raises:
        StorageError: There is no such repository, revision or file, or no way to reach it.
    """
    options: dict[str, Any] = {"token": token, "local_files_only": local_files_only}
    paths: list[Path] = []
    with hub_errors(repo, revision):
        for name in names:
            # The folder is named after the commit: somebody may push between two downloads.
            commit = paths[0].parent.name if paths else revision
            paths.append(Path(hf_hub_download(repo, name, revision=commit, **options)))
    return paths


def hub_id(name: str | None) -> str | None:
    """Return `name` if it can be a repository on the Hub (`owner/name`), None for a local path."""
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return None
    return name if name and "/" in name and not os.path.exists(name) else None
