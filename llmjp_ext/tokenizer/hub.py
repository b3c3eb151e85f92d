"""Model folders: local ones, and those of the Hugging Face Hub."""

import contextlib
import os
import re
from pathlib import Path

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def model_folder(
    name: str | os.PathLike[str],
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
) -> Path:
    """The folder with the tokenizer files of a model.

    Args:
        name: a folder, or "organisation/model" of the Hub where there is no such folder.
        revision: branch, tag or commit on the Hub; None for its main branch.
        cache_dir: where downloads are kept; None for the Hub library's own place.
        local_files_only: take what has been downloaded before, and no network.

    Raises:
        OSError: there is no such folder, or the Hub does not hand its tokenizer.json over.
        ImportError: the name is one of the Hub, and huggingface_hub is not installed.
    """
    folder = Path(name)
    if folder.exists() or not (isinstance(name, str) and _HUB_NAME.fullmatch(name)):
        return folder
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise ImportError(
            f"there is no folder {name!r}; to load it from the Hugging Face Hub, install "
            "huggingface_hub"
        ) from None

    def download(file: str) -> Path:
        return Path(
            huggingface_hub.hf_hub_download(
                name,
                file,
                revision=revision,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=local_files_only,
            )
        )

    try:
        found = download("tokenizer.json").parent
    except Exception as error:  # of several libraries below, by the Hub library's version
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(
            f"there is no folder {name!r}, and the Hugging Face Hub gives no tokenizer.json of "
            f"that name: {reason}"
        ) from error
    with contextlib.suppress(EntryNotFoundError):  # a model need not have one
        download("tokenizer_config.json")
    return found
