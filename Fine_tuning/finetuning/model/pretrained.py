"""Locate a model: a file given by path, or a model that is known by its name, which is downloaded once.

NeMo is imported only to look up a name that is in no registry of ours.
"""

import lzma
import re
import sys
import tarfile
import zlib
from pathlib import Path

import requests

from finetuning.config import schema as experiment
from finetuning.config.key_types import shown_value
from finetuning.config.schema import RegistryEntry, strip_query
from finetuning.download import describe_request_error, resume_download
from finetuning.errors import UserError
from finetuning.files import ensure_writable_dir, exclusive_lock, sha256

PUBLIC_NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
MAX_UNPACKED_BYTES = 20e9  # of a .nemo; the largest known ones are a few 1e9


def locate_model(name_or_path: str, model: experiment.Model) -> Path:
    """Return the `.nemo` file for a path or a name; of a name it is downloaded when it is not there yet.

    A path is relative to the project's folder or, when it does not exist there, to the current folder. A name is one of
    the registry, one of NeMo's own list, or OWNER/NAME of the Hugging Face Hub. Raises UserError when there is no such
    model, it cannot be downloaded, or the file is not what the registry states.
    """
    if entry := model.registry.get(name_or_path):
        path = _downloaded(name_or_path, entry, model)
        _check_registered(name_or_path, entry, path)
        return path
    for path in (experiment.resolve_path(name_or_path), Path(name_or_path).expanduser().resolve()):
        if path.is_file():
            return path
    stored = experiment.resolve_path(model.folder) / f"{_file_name(name_or_path)}.nemo"
    if PUBLIC_NAME.fullmatch(name_or_path) and stored.is_file():
        return stored
    if address := _public_address(name_or_path):
        return _downloaded(_file_name(name_or_path), RegistryEntry(url=address), model)
    known = ", ".join(model.registry) or "it is empty"
    raise UserError(
        f"there is no model {shown_value(name_or_path)}; train it with Fine_tuning/train.py (the demo's English "
        f"base: make demo-base), or give the path of a .nemo file, a name of model.registry ({known}) or of NeMo's own "
        "list, or OWNER/NAME of the Hugging Face Hub"
    )


def _file_name(name: str) -> str:
    """Return the name of a model's file, without .nemo, in the folder of downloaded models."""
    return name.replace("/", "--")


def _downloaded(name: str, entry: RegistryEntry, model: experiment.Model) -> Path:
    path = experiment.resolve_path(model.folder) / f"{name}.nemo"
    if not path.is_file():
        # ranks of one training run call this at the same time
        with exclusive_lock(ensure_writable_dir(path.parent), wait=True):
            if not path.is_file():
                download_model(name, entry, path)
    return path


def _public_address(name: str) -> str:
    """Return where a model of NeMo's own list, or of the Hugging Face Hub, is downloaded; "" for any other name."""
    if not PUBLIC_NAME.fullmatch(name) or name.endswith(".nemo"):
        return ""
    owner, _, own = name.rpartition("/")
    if owner:
        from huggingface_hub import hf_hub_url

        return "" if experiment.resolve_path(owner).exists() else hf_hub_url(name, f"{own}.nemo")
    print(f"{name}: looked up in NeMo's list of models, which takes a moment", file=sys.stderr)
    from nemo.collections.asr.models import ASRModel

    from finetuning.model.ctc_model import silence_nemo

    silence_nemo()
    addresses = [about.location for about in ASRModel.list_available_models() if about.pretrained_model_name == name]
    return next((address for address in addresses if str(address).startswith("https://")), "")


def download_model(name: str, entry: RegistryEntry, path: Path) -> None:
    """Download a model of the registry to `path`; an interrupted download resumes from its `.part` file.

    The file appears as `path` only when it has the size that is stated or announced and the SHA-256 that is stated, and
    is a .nemo. Raises UserError, with the address and the path to put the file at by other means, otherwise.
    """
    part, address = path.with_name(path.name + ".part"), strip_query(entry.url)
    if part.is_symlink():  # or its target would be overwritten
        part.unlink()
    try:
        resume_download(entry.url, part, entry.size_bytes, name)
    except requests.RequestException as error:
        raise UserError(
            f"cannot download model.registry.{name} from {address} ({describe_request_error(error)}); rerun the same "
            f"command to resume, or download it by other means and put the file at {path}"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write {part} ({error.strerror}); make room or set another model.folder") from error
    digest = sha256(part)
    if fault := _fault(name, entry, part, digest):
        wrong = path.with_name(path.name + ".wrong")
        part.replace(wrong)
        raise UserError(
            f"the file from {address} {fault}; it was set aside as {wrong.name}: rerun the same command to download it "
            f"again, or download it by other means and put the file at {path}"
        )
    part.replace(path)
    if not (entry.sha256 and entry.size_bytes):
        print(
            f"{name}: downloaded; to have later downloads checked, add below model.registry.{name}: "
            f"size_bytes: {path.stat().st_size}, sha256: {digest}",
            file=sys.stderr,
        )


def _fault(name: str, entry: RegistryEntry, part: Path, digest: str) -> str:
    """Return what is wrong with the downloaded file; "" when it is the model."""
    if entry.sha256 and digest != entry.sha256:
        return f"has the SHA-256 {digest}, and model.registry.{name} states {entry.sha256}"
    if not _is_nemo(part):
        return "is not a .nemo file (a tar archive that holds model_config.yaml and weights)"
    return ""


def _is_nemo(path: Path) -> bool:
    """Return whether the file is a tar, compressed or not, that holds a configuration and weights."""
    names = set()
    try:
        with tarfile.open(path) as archive:
            while member := archive.next():
                archive.members.clear()  # tarfile would keep them all
                names.add(Path(member.name).name[:100])
                if member.offset_data + member.size > MAX_UNPACKED_BYTES or len(names) > 1000:
                    return False
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError, zlib.error, lzma.LZMAError):
        return False
    return "model_config.yaml" in names and any(name.endswith(".ckpt") for name in names)


def _check_registered(name: str, entry: RegistryEntry, path: Path) -> None:
    """Raise UserError when an existing file is not what the registry states."""
    size = path.stat().st_size
    difference = f"{size:,} bytes" if entry.size_bytes and size != entry.size_bytes else ""
    if not difference and entry.sha256 and (digest := sha256(path)) != entry.sha256:
        difference = f"the SHA-256 {digest}"
    if difference:
        raise UserError(
            f"{path} has {difference}, not what model.registry.{name} states; delete the file and rerun the same "
            "command to download it again, or correct the registry"
        )
