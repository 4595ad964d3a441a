"""`LanguageModel`: the base model, run in two parts over packed rows, and batches by length.

A probe adapts the last layers only, so the layers before are run once a batch: `trunk` gives the activations that enter
layer `first`, `hidden` runs the rest. Rows come packed (`packing.py`): no padding, no mask, and a row's scores do not
depend on its batch-mates.

Shapes: N tokens of a packed batch, d hidden size, R response tokens, V vocabulary.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskpgm.chat.encoder import Encoded, Limits
from taskpgm.lm.batching import logit_rows, padded
from taskpgm.lm.checkpoint import limits_of
from taskpgm.lm.devices import free_memory
from taskpgm.lm.forwards import replaced
from taskpgm.lm.lora import sizes
from taskpgm.lm.packing import BLOCK, Packed, attending, shared_prefix
from taskpgm.system import total_memory


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode, its tokenizer, and the pieces that the two-part forward needs."""

    model: Any
    tokenizer: Any
    name: str
    layers: nn.ModuleList
    processes: int = 1  # that train and score side by side, one core each; 1: one on all cores
    whole_because: str | None = None  # why packed trunk, rest and output embedding do not give the model's own logits
    precision_note: str | None = None  # why it is not run in the precision that it was saved in, or is run slowly
    planned: torch.device | None = None  # where weights would be that are not read, but for their shapes
    room: float | None = None  # bytes that a batch may take there

    @property
    def plain_head(self) -> bool:
        """Whether packed trunk, rest and output embedding give exactly the model's own logits."""
        return self.whole_because is None

    @property
    def device(self) -> torch.device:
        """Where token ids go: the embedding's device, and all other weights' if there is one device."""
        return self.planned or next(self.model.parameters()).device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Where the weights are: one device, or those that `model.device_map` spread the layers over."""
        return (self.planned,) if self.planned else tuple(dict.fromkeys(w.device for w in self.model.parameters()))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def limits(self) -> Limits:
        """What it can be given."""
        return limits_of(self.model)

    @property
    def token_budget(self) -> int:
        """Tokens in a batch."""
        return 2048 if self.device.type == "cpu" else 16384

    @property
    def memory_budget(self) -> float:
        """Bytes that a batch may take: an equal part of half of the machine's memory for each process that works beside
        others; of GPUs what is free on the fullest, less a tenth, times their number."""
        if self.room is not None:
            return self.room
        if self.device.type == "cpu":
            return total_memory() / 2 / self.processes
        return min(map(free_memory, self.devices)) * len(self.devices)

    def memory(
        self, tokens: int, longest: int, responses: int, first: int | None = None, recompute: bool = False
    ) -> float:
        """Bytes, roughly and rather too many, that a batch takes beyond the model: activations, and logits.

        Args:
            tokens: of the batch.
            longest: tokens of its longest row; run whole, a layer holds all scores of a row with itself.
            responses: tokens that are predicted.
            first: the layer from which on a backward pass is to follow; activations of one layer at a time without.
            recompute: the backward pass computes what lies inside a layer again.
        """
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or 0  # none, say, of a model of states alone
        each = sum(map(_width, self.layers[-1].modules())) * 4
        # Scores of attention: of one block of queries at a time, or of a whole layer.
        at_once = 8 * heads * min(longest, BLOCK) * (self.device.type == "cpu")
        if self.device.type == "cpu" and not self.plain_head:
            each += 8 * heads * longest
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        behind = 0 if first is None else len(self.layers) - first
        entering = 4 * config.hidden_size * behind if recompute else 0
        inside = each * (max(1, behind) if not recompute else 1)
        logits = (1 if first is None else 3) * 4 * vocabulary * responses
        return float(tokens * (entering + inside + at_once) + logits + (256 << 20))

    def shared_prefix(self, rows: Sequence[Encoded]) -> int:
        """Number of first tokens that the model may run once for all these rows."""
        return shared_prefix(rows) if self.plain_head else 0

    def trunk(self, packed: Packed, first: int) -> Tensor | None:
        """(N, d) activations that enter layer `first`; None for the first layer, whose input is the embedding."""
        if first == 0 or not self.plain_head:
            return None
        with torch.no_grad(), _stopped_at(self.layers[first]) as seen, contextlib.suppress(_StoppedError):
            self._run(packed)
        return seen[0][0]

    def hidden(self, packed: Packed, entering_Nd: Tensor | None, first: int) -> Tensor:
        """(N, d) last hidden states, final norm included, of the tokens that predict a response; others are unfinished.

        Args:
            entering_Nd: the activations that enter layer `first`.
        """
        if entering_Nd is None:
            return self._run(packed)
        with _skipped(self.layers[:first]), _fed(self.layers[first], entering_Nd[None]):
            return self._run(packed)

    def response_logits(
        self, packed: Packed, entering_Nd: Tensor | None = None, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Blocks of (logits (r, V), labels (r,), last hidden states (r, d)) over the response tokens, row by row.

        A label at position t is predicted from position t-1. No hidden states if the head is not plain.
        """
        if not self.plain_head:
            yield from self._whole(packed)
            return
        hidden_Nd = self.hidden(packed, entering_Nd, first)
        hidden_Rd = hidden_Nd.index_select(0, packed.predict_R.to(hidden_Nd.device))
        head = self.model.get_output_embeddings()
        rows = logit_rows(head.weight.shape[0], hidden_Rd.device)
        for hidden_rd, labels_r in zip(hidden_Rd.split(rows), packed.labels_R.split(rows), strict=True):
            logits_rV = head(hidden_rd)
            yield logits_rV, labels_r.to(logits_rV.device), hidden_rd

    @contextlib.contextmanager
    def running(self, packed: Packed) -> Iterator[None]:
        """Within, the model runs packed rows: attention follows their layout, and the last layer's feed-forward part
        sees only the tokens that predict a response, for nothing else of what it gives is read."""
        with attending(self.model, packed), _only_on(packed.predict_R, self.last_feed_forward):
            yield

    @property
    def last_feed_forward(self) -> nn.Module | None:
        """What the last layer does to each token by itself; None if it is called otherwise than in most models."""
        found = getattr(self.layers[-1], "mlp", None)
        return found if isinstance(found, nn.Module) else None

    def _run(self, packed: Packed) -> Tensor:
        # A mask of four dimensions is handed on as it is; the packed attention does not read it.
        mask = torch.zeros(1, 1, 1, 1, device=self.device)
        with self.running(packed):
            return self.model.base_model(
                input_ids=packed.ids_N[None], position_ids=packed.position_N[None], attention_mask=mask,
                use_cache=False,
            ).last_hidden_state[0]  # fmt: skip

    def _whole(self, packed: Packed) -> Iterator[tuple[Tensor, Tensor, None]]:
        """The model's own logits, rows padded on the right, which a causal model never sees."""
        ids_BL, response_BL = padded(packed.rows, self.tokenizer.pad_token_id, self.device)
        logits_BLV = self.model(input_ids=ids_BL, use_cache=False).logits
        yield logits_BLV[:, :-1][response_BL[:, 1:]], packed.labels_R, None


def _width(module: nn.Module) -> int:
    """Sizes of a module's own matrices, in and out; those of a quantised layer are not its tensor's."""
    if isinstance(module, nn.Linear):
        return sum(sizes(module))
    return sum(sum(weight.shape) for weight in module.parameters(recurse=False) if weight.ndim == 2)


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
def _only_on(index_R: Tensor, module: nn.Module | None) -> Iterator[None]:
    """Within, `module` runs on these of the N tokens alone; the others get zeros."""
    if module is None:
        yield
        return
    run = module.forward

    def on_some(hidden_BNd: Tensor, *args: Any, **kwargs: Any) -> Any:
        index = index_R.to(hidden_BNd.device)
        found = run(hidden_BNd.index_select(1, index), *args, **kwargs)
        if not isinstance(found, Tensor):  # and more beside it
            return run(hidden_BNd, *args, **kwargs)
        return found.new_zeros(*hidden_BNd.shape[:-1], found.shape[-1]).index_copy(1, index, found)

    with replaced({module: on_some}):
        yield


@contextlib.contextmanager
def _skipped(layers: nn.ModuleList) -> Iterator[None]:
    """Within, these layers hand their input on."""

    def hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    with replaced(dict.fromkeys(layers, hand_on)):
        yield


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
