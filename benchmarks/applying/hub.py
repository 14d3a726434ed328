"""Weights as a repository of the Hugging Face Hub: model card, weights and what describes the fit."""

from __future__ import annotations

from pathlib import Path

from benchmarks.applying.loading import find_weights
from benchmarks.store.weights import CARD, FIT

#: Files of a fit that go to the Hub, with the weights' own name in place of ``{}``.
FILES = (CARD, "{}.json", "{}.safetensors", FIT)


class PushError(RuntimeError):
    """Weights that could not be uploaded; one line with the reason and the fix."""


def files_to_push(path: Path) -> list[Path]:
    """The files that an upload of these weights consists of; raises ``WeightsError`` if there are none."""
    stem = find_weights(path)
    files = [stem.with_name(name.format(stem.name)) for name in FILES]
    return [file for file in files if file.is_file()]


def check_repository(repository: str) -> None:
    """Raises :class:`PushError` for what the Hub takes for no repository's name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise PushError(f"{repository!r} is not a repository: write OWNER/NAME ({_line(error)})") from error


def push(path: Path, repository: str, *, private: bool = False, endpoint: str | None = None) -> str:
    """Upload weights to the repository ``OWNER/NAME``, which is made if it is new; returns its address.

    The account is the one that ``hf auth login`` or ``HF_TOKEN`` gives; ``endpoint``: another hub than the public one
    (default: ``HF_ENDPOINT``). All files are one commit, so that a reader never finds half of them. Raises
    :class:`PushError`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_repository(repository)
    files = files_to_push(path)
    api = HfApi(endpoint=endpoint)
    try:
        repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
        operations = [CommitOperationAdd(file.name, str(file)) for file in files]
        done = api.create_commit(repository, operations, commit_message="Weights fitted with UCDR-Bench")
    except HfHubHTTPError as error:
        code = error.response.status_code
        hint = "; log in with `hf auth login`, or set HF_TOKEN" if code in (401, 403) else ""
        raise PushError(f"{repository}: the hub answered {code} ({_line(error)}){hint}") from error
    except Exception as error:  # what the HTTP client raises depends on its version
        raise PushError(f"{repository}: the hub cannot be reached ({_line(error)})") from error
    return str(done.repo_url)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
