"""An export goes to the Hugging Face hub, with its card; `retrieval.model.load` brings it back."""

from collections.abc import Collection
from pathlib import Path

from scav_jax.base.errors import OUR_FAULTS, InputError, first_line
from scav_jax.extract.backbones.weights import HUB_ID
from scav_jax.retrieval.model import is_exported, load


def check(hub_id: str) -> None:
    """Raises `InputError` for what names no model on the hub."""
    named = HUB_ID.fullmatch(hub_id)
    if not named or named["revision"]:
        raise InputError(f"--push: expected OWNER/NAME, got {hub_id!r}")


def push(folder: Path, hub_id: str, *, private: bool = False, trust: Collection[str] = ()) -> str:
    """Uploads a whole export as one commit; the address of that commit.

    Args:
      folder: what `export` wrote; it is loaded first, so that nothing damaged is shared.
      hub_id: `owner/name`; made where it is not there.
      private: a new one is for its owner only.
      trust: code that the model names and that is not of this package, as for `load`.

    Raises:
      InputError: no export there, or the hub does not take it: not logged in, no network.
    """
    from huggingface_hub import HfApi

    if not is_exported(folder) or not (folder / "README.md").is_file():
        raise InputError(
            f"{folder}: expected what `scav export` wrote, with its card (README.md); --run RUN "
            "writes it there"
        )
    model = load(folder, trust=trust)
    try:
        api = HfApi()
        api.create_repo(hub_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=hub_id, folder_path=folder, commit_message=f"Model {model.identity}"
        )
    except OUR_FAULTS:
        raise
    except Exception as error:  # HTTP, login and name errors have no common ancestor
        raise InputError(
            f"--push: {hub_id} did not take the model ({first_line(error)}); it is whole in "
            f"{folder}, give `scav export --out {folder} --push {hub_id}` again, after `hf auth "
            "login` where the hub does not know you"
        ) from error
    return str(commit.commit_url)
