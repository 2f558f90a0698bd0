"""Where an extractor's published weights are, and the check of them before anything loads them.

The digests below are of the files as published; `evaluate.weights_sha256` puts another network's in their place.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from ifm.errors import UserError
from ifm.files import file_sha256

TRANSFORMERS_CONFIG, TRANSFORMERS_FILE = "config.json", "model.safetensors"  # of a folder in transformers' form

# The TorchScript Inception-v3 of StyleGAN2-ADA, which clean-fid fetches; k-diffusion pins the same digest.
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_FOLDER = Path("/tmp")  # clean-fid's own choice

DINOV2_REPOSITORY = "facebook/dinov2-large"  # ViT-L/14
DINOV2_REVISION = "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"
DINOV2_SHA256 = "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23"  # of model.safetensors


class ExtractorError(UserError, RuntimeError):
    """The extractor cannot be built; the message says which file or setting mends it."""


def verified_bytes(file: Path, *, sha256: str) -> bytes:
    """The file's bytes, the very ones whose digest is `sha256`. Raises ExtractorError where they have another."""
    data = file.read_bytes()
    _compare(file, hashlib.sha256(data).hexdigest(), sha256)
    return data


def verify(file: Path, *, sha256: str) -> None:
    """Raises ExtractorError where the file's digest is not `sha256`; for files too large to hold."""
    _compare(file, file_sha256(file), sha256)


def find_inception(path: str | None, *, sha256: str | None = None) -> Path:
    """The TorchScript file: at `evaluate.inception_path`, or where clean-fid keeps it, or fetched to there.

    A file that was there before is not read here: InceptionExtractor verifies what it loads. One that is fetched takes
    its place only where its digest is right. Raises ExtractorError that says which file to put where.
    """
    if path is not None:
        file = Path(path).expanduser()
        file = file / INCEPTION_FILE if file.is_dir() else file
        if not file.is_file():
            raise ExtractorError(f"evaluate.inception_path = {path!r}: no such file; put {INCEPTION_FILE} there")
        return file
    usual = INCEPTION_FOLDER / INCEPTION_FILE
    if not usual.is_file():
        _fetch_inception(usual, sha256=sha256 or INCEPTION_SHA256)
    return usual


def _fetch_inception(usual: Path, *, sha256: str) -> None:
    """clean-fid's download, in a folder of its own that goes in any case, so that no half a file stands at `usual`."""
    from cleanfid.downloads_helper import check_download_inception

    mend = f"put {INCEPTION_FILE} there or name it in evaluate.inception_path, then run `dvc repro` again"
    try:
        with tempfile.TemporaryDirectory(dir=usual.parent) as folder:
            fetched = Path(check_download_inception(fpath=folder))
            found = file_sha256(fetched)
            if found == sha256:
                os.replace(fetched, usual)
    except Exception as error:
        raise ExtractorError(
            f"the Inception weights are not at {usual} and could not be fetched ({type(error).__name__}); "
            f"{mend} (nothing else is lost), or use evaluate.extractor: classifier or pixels"
        ) from error
    if found != sha256:
        raise ExtractorError(
            f"the Inception weights are not at {usual}, and what was fetched has sha256 {found}, expected {sha256}; "
            f"it was removed: {mend}"
        )


def find_dinov2(path: str | None) -> Path:
    """model.safetensors with config.json beside it: at `evaluate.dinov2_path` (the file or its folder), or the Hub's.

    The Hub's are DINOV2_REPOSITORY at DINOV2_REVISION, from its cache where they are there. Dinov2Extractor verifies
    what it loads. Raises ExtractorError that says which files to put where.
    """
    if path is None:
        return _fetch_dinov2()
    return _in_folder(path, key="evaluate.dinov2_path", of=DINOV2_REPOSITORY)


def find_clap(path: str | None) -> Path:
    """model.safetensors with config.json beside it, at `evaluate.clap_path`: the file or its folder.

    ClapExtractor verifies what it loads. Raises ExtractorError that says which files to put where.
    """
    if path is None:
        raise ExtractorError(
            f"evaluate.clap_path is missing: name a folder with {TRANSFORMERS_CONFIG} and {TRANSFORMERS_FILE} of a "
            "CLAP, e.g. laion/clap-htsat-unfused"
        )
    return _in_folder(path, key="evaluate.clap_path", of="laion/clap-htsat-unfused")


def _in_folder(path: str, *, key: str, of: str) -> Path:
    """model.safetensors of a folder in transformers' form, which is given itself or by that file."""
    given = Path(path).expanduser()
    folder = given if given.is_dir() else given.parent
    key = f"{key} = {path!r}"
    mend = f"put {TRANSFORMERS_CONFIG} and {TRANSFORMERS_FILE} of {of} there"
    if not given.exists():
        raise ExtractorError(f"{key}: no such file or folder; {mend}")
    if (given.is_file() and given.name != TRANSFORMERS_FILE) or not (folder / TRANSFORMERS_FILE).is_file():
        raise ExtractorError(
            f"{key}: no {TRANSFORMERS_FILE}; {mend} (pickled weights such as pytorch_model.bin can run code and are "
            "not read)"
        )
    if not (folder / TRANSFORMERS_CONFIG).is_file():
        raise ExtractorError(f"{key}: no {TRANSFORMERS_CONFIG} beside {TRANSFORMERS_FILE}; {mend}")
    return folder / TRANSFORMERS_FILE


def _fetch_dinov2() -> Path:
    from huggingface_hub import hf_hub_download

    try:  # with a commit as revision, a file in the Hub's cache is taken without asking the network
        for name in (TRANSFORMERS_CONFIG, TRANSFORMERS_FILE):
            file = hf_hub_download(DINOV2_REPOSITORY, name, revision=DINOV2_REVISION)
    except Exception as error:
        raise ExtractorError(
            f"the DINOv2 weights are not in the Hub's cache and could not be fetched ({type(error).__name__}); put "
            f"{TRANSFORMERS_CONFIG} and {TRANSFORMERS_FILE} of {DINOV2_REPOSITORY} into a folder and name it in "
            "evaluate.dinov2_path, then run `dvc repro` again (nothing else is lost), or use evaluate.extractor: "
            "classifier or pixels"
        ) from error
    return Path(file)


def _compare(file: Path, found: str, expected: str) -> None:
    if found != expected:
        raise ExtractorError(
            f"{file}: sha256 is {found}, expected {expected}; delete it and fetch it again, or, where another network "
            f"is meant, set evaluate.weights_sha256: {found}"
        )
