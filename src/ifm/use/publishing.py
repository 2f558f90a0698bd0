"""An exported folder on the Hugging Face Hub."""

from pathlib import Path

from ifm.errors import UserError
from ifm.hub import quiet_hub


def check_login(repo_id: str) -> None:
    """Raises UserError where the name is no Hub id, or nobody is logged in: before any long work."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {repo_id}: is no Hub id; use owner/name") from error
    if get_token() is None:
        raise UserError(f"--push-to-hub {repo_id}: nobody is logged in; run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repo_id: str, *, private: bool | None = None, space: bool = False) -> str:
    """Creates the repository where it is not there, uploads the folder as one commit, and returns the commit's URL.

    space: as a Space of Gradio, not as a model. The token is huggingface_hub's own (`hf auth login`, HF_TOKEN). Raises
    UserError that says what the Hub answered, never the token.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HTTPError  # of the HTTP client that this huggingface_hub has

    api = HfApi()
    try:
        kind = {"repo_type": "space"} if space else {}
        sdk = {"space_sdk": "gradio"} if space else {}
        repo_id = api.create_repo(repo_id, exist_ok=True, private=private, **kind, **sdk).repo_id
        with quiet_hub():
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Exported by ifm", **kind)
    except (HTTPError, OSError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        said = said.replace(get_token() or "\0", "***")
        raise UserError(f"--push-to-hub {repo_id}: {api.endpoint}: {said[:300]} ({folder} is whole)") from error
    return str(commit.commit_url)
