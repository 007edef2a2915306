"""Model folders on the Hugging Face hub."""

import re
from pathlib import Path

from margin_jax.models.pretrained import optional
from margin_jax.runs.portable import MODEL
from margin_jax.runs.weights import WEIGHTS

PREFIX = "hub:"
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def fetch(name: str) -> Path:
    """The folder of a model, downloaded once and kept in the cache of the hub.

    Args:
        name: "hub:USER/NAME", or "hub:USER/NAME@REVISION" for one that does not change.

    Raises:
        ValueError: for another name, no network and no copy in the cache, or huggingface_hub is
            not installed.
    """
    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    _check(repo, name)
    hub = optional("huggingface_hub", "models on the hub")
    try:
        # Only what is read; nothing else that may lie there comes to this machine.
        files = [MODEL, WEIGHTS]
        return Path(hub.snapshot_download(repo, revision=revision or None, allow_patterns=files))
    except Exception as error:  # of the hub, of the network below it, of the disk
        raise ValueError(
            f"cannot download https://huggingface.co/{repo} ({type(error).__name__}); get the "
            "folder another way and give its path"
        ) from error


def push(folder: Path, name: str, private: bool | None) -> str:
    """Uploads a model folder as a repository of the hub, and returns its address.

    Raises:
        ValueError: if it cannot be done: no network, no login, another's repository.
    """
    repo = name.removeprefix(PREFIX)
    _check(repo, name)
    hub = optional("huggingface_hub", "models on the hub")
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Model by margin-jax")
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"cannot upload to https://huggingface.co/{repo} ({type(error).__name__}: {said}); "
            "`hf auth login` tells the hub who you are"
        ) from error
    return f"https://huggingface.co/{repo}"


def _check(repo: str, name: str) -> None:
    if not _NAME.fullmatch(repo):
        raise ValueError(f"a model on the hub is hub:USER/NAME; got {name!r}")
