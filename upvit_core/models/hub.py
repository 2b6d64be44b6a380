"""Fetch a model's folder from the Hugging Face hub, or from its cache; files are only stored here, never run."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from upvit_core.errors import CheckpointError
from upvit_core.models.files import reason

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PROBE_SECONDS = 4.0


def fetch(repo: str) -> Path:
    """Folder with config, weights and, where there is one, preprocessor config of `owner/name[@revision]`.

    Raises CheckpointError where there is no such repository, no network, or no file of weights.
    """
    repo_id, _, revision = repo.partition("@")
    cached = not _is_reachable()

    def get(name: str) -> Path:
        return Path(hf_hub_download(repo_id, name, revision=revision or None, local_files_only=cached))

    def get_any(names: tuple[str, ...]) -> Path | None:
        for name in names:
            try:
                return get(name)
            except LocalEntryNotFoundError:
                if not cached:
                    raise
            except EntryNotFoundError:
                pass
        return None

    try:
        config = get("config.json")
        weights = get_any(WEIGHTS)
        get_any(("preprocessor_config.json",))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"hf-hub:{repo} does not exist or is not public; check the name, given as owner/name[@revision]."
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"hf-hub:{repo} cannot be fetched: no network to the hub, and it is not in the local cache; connect, or "
            "give a file or folder."
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"hf-hub:{repo} has no config.json, so it is no model that can be opened.") from error
    except Exception as error:  # the hub's client raises its HTTP library's errors, and that library changes
        raise CheckpointError(f"hf-hub:{repo} cannot be fetched ({reason(error)}); try again.") from error
    if weights is None:
        where = "in the local cache, and there is no network to the hub" if cached else f"({' or '.join(WEIGHTS)})"
        raise CheckpointError(f"hf-hub:{repo} has no weights {where}; give a repository or file that has them.")
    return config.parent


def _is_reachable() -> bool:
    """One quick try, since the hub's client repeats each failing request for half a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    endpoint = urlsplit(constants.ENDPOINT)
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        with socket.create_connection((endpoint.hostname or "", port), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False
