"""`LanguageModel`: the base model, run in two parts, and batches by length.

A probe adapts the last layers only, so the layers before are run once a batch: `prefix` gives the activations that
enter layer `first`, `hidden` runs the rest. Rows are padded on the right, which a causal model never sees: no mask is
passed, and a row's scores do not depend on its batch-mates.

Shapes: B rows, L padded length, d hidden size, R response tokens.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskpgm.chat import Encoded, load_tokenizer
from taskpgm.checkpoint import model_folder
from taskpgm.config import ModelConfig
from taskpgm.errors import UserError, first_line


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode, its tokenizer, and the pieces that the two-part forward needs."""

    model: Any
    tokenizer: Any
    name: str
    layers: nn.ModuleList
    plain_head: bool  # logits are exactly the output embedding of the last hidden state

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def token_budget(self) -> int:
        """Padded tokens in a batch."""
        return 2048 if self.device.type == "cpu" else 16384

    def prefix(self, ids_BL: Tensor, first: int) -> Tensor | None:
        """(B, L, d) activations that enter layer `first`; None for the first layer, whose input is the embedding."""
        if first == 0:
            return None
        with torch.no_grad(), _stopped_at(self.layers[first]) as seen, contextlib.suppress(_StoppedError):
            self.model.base_model(input_ids=ids_BL, use_cache=False)
        return seen[0]

    def hidden(self, ids_BL: Tensor, prefix_BLd: Tensor | None, first: int) -> Tensor:
        """(B, L, d) last hidden states, final norm included, from the activations that enter layer `first`."""
        if prefix_BLd is None:
            return self.model.base_model(input_ids=ids_BL, use_cache=False).last_hidden_state
        with _skipped(self.layers[:first]), _fed(self.layers[first], prefix_BLd):
            return self.model.base_model(input_ids=ids_BL, use_cache=False).last_hidden_state

    def response_logits(
        self, ids_BL: Tensor, response_BL: Tensor, prefix_BLd: Tensor | None = None, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Blocks of (logits (r, V), labels (r,), last hidden states (r, d)) over the response tokens, row by row.

        A label at position t is predicted from position t-1. No hidden states where the head is not plain.
        """
        labels_R = ids_BL[:, 1:][response_BL[:, 1:]]
        if not self.plain_head:
            logits_BLV = self.model(input_ids=ids_BL, use_cache=False).logits
            yield logits_BLV[:, :-1][response_BL[:, 1:]], labels_R, None
            return
        hidden_Rd = self.hidden(ids_BL, prefix_BLd, first)[:, :-1][response_BL[:, 1:]]
        head = self.model.get_output_embeddings()
        for block in torch.arange(len(labels_R), device=labels_R.device).split(logit_rows(head.weight.shape[0])):
            yield head(hidden_Rd[block]), labels_R[block], hidden_Rd[block]


def logit_rows(vocabulary: int, copies: int = 3, budget: int = 256 << 20) -> int:
    """Rows of float32 logits of which `copies` fit into `budget` bytes."""
    return max(1, budget // (4 * vocabulary * copies))


def load_model(config: ModelConfig) -> LanguageModel:
    """The base model in evaluation mode on its device, gradients off, checked to run in two parts.

    Weights are read from safetensors (a GGUF file is converted to it once); pickled weights are refused.

    Raises:
        UserError: nothing loadable at `config.path`, no tokenizer, or an unavailable device.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    tokenizer = load_tokenizer(config)
    device = _device(config.device)
    # Eager attention trains faster on a CPU (the flash kernel's bfloat16 backward is slow there); it holds L² scores.
    attention = {"attn_implementation": "eager"} if device.type == "cpu" else {}
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_folder(config), dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
            use_safetensors=True, trust_remote_code=config.trust_remote_code, **attention,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"No causal language model can be loaded from {config.path!r} ({first_line(error)}); name a hub id, a "
            "folder with config.json and safetensors weights, or a .gguf file."
        ) from error
    finally:
        transformers_logging.enable_progress_bar()
    model = model.to(device).eval().requires_grad_(False)
    lm = LanguageModel(model, tokenizer, config.path, _decoder_layers(model), plain_head=True)
    return LanguageModel(model, tokenizer, config.path, lm.layers, plain_head=_runs_in_parts(lm))


def batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices grouped so that rows of like length share a batch of at most `token_budget` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * lengths[i] > token_budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def padded(rows: Sequence[Encoded], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, L) token ids padded on the right and the (B, L) mask of response tokens."""
    longest = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    response = np.zeros((len(rows), longest), dtype=bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = row.ids
        response[i, : len(row.ids)] = row.response
    return torch.from_numpy(ids).to(device), torch.from_numpy(response).to(device)


def halving(
    items: Sequence[Encoded], work: Callable[[Sequence[Encoded]], Any], warn: Callable[[str], None]
) -> list[Any]:
    """Results of `work` on all items, or on halves of them, and halves of these, where memory runs out."""
    try:
        return [work(items)]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or len(items) == 1:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    warn(f"out of memory with {len(items)} rows in a batch: going on with halves")
    middle = len(items) // 2
    return halving(items[:middle], work, warn) + halving(items[middle:], work, warn)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


class _StoppedError(Exception):
    """The forward pass has what it was run for."""


@contextlib.contextmanager
def _stopped_at(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Within, a forward pass ends in front of `layer`; the list holds the activations that would have entered it."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _StoppedError

    handle = layer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@contextlib.contextmanager
def _skipped(layers: nn.ModuleList) -> Iterator[None]:
    """Within, these layers hand their input on."""

    def hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    for layer in layers:
        layer.forward = hand_on
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextlib.contextmanager
def _fed(layer: nn.Module, entering_BLd: Tensor) -> Iterator[None]:
    """Within, `layer` receives these activations whatever comes before it."""

    def feed(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((entering_BLd, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": entering_BLd})

    handle = layer.register_forward_pre_hook(feed, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _decoder_layers(model: Any) -> nn.ModuleList:
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise UserError(f"{type(model).__name__} has no list of {depth} decoder layers; such a model is not supported.")


def _runs_in_parts(lm: LanguageModel) -> bool:
    """Whether trunk, skipped layers and head reproduce the model's own logits (no soft cap, scale or shared state)."""
    vocabulary = lm.model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(24, device=lm.device).reshape(2, 12) * 7919 + 11) % vocabulary
    response = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        whole = lm.model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        for first in {0, len(lm.layers) // 2, len(lm.layers) - 1}:
            blocks = lm.response_logits(ids, response, lm.prefix(ids, first), first)
            parts = torch.cat([logits for logits, *_ in blocks])
            if not torch.allclose(whole.float(), parts.float(), rtol=2e-2, atol=2e-2):
                return False
    return True


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"Device {name!r} is not available ({first_line(error)}); use auto or cpu.") from error
    return device
