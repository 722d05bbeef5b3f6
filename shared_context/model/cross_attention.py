"""The paper's injection: a separate attention over the context in each of the bottom layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel

from shared_context.config import InjectionKind
from shared_context.kernels import (
    RaggedContext,
    RaggedKV,
    Rotary,
    assemble_ragged,
    ragged_attention,
    rotate_keys,
)
from shared_context.model.context import ContextKV
from shared_context.model.low_rank import LowRank


class CrossAttention(nn.Module):
    """The paper's separate attention of one decoder layer: own norm, query and output projection.

    The output projection begins at zero, so an untrained module leaves the model as it was.

    Args:
        hidden_size: of the decoder's states.
        heads, kv_heads, head_dim: as in the decoder's self-attention.
        eps: of the norm.
    """

    def __init__(self, hidden_size: int, heads: int, kv_heads: int, head_dim: int, eps: float):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.norm = nn.RMSNorm(hidden_size, eps=eps)
        self.q_proj = nn.Linear(hidden_size, heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, hidden_size, bias=False)
        nn.init.zeros_(self.o_proj.weight)

    def forward(
        self,
        states: torch.Tensor,
        context: RaggedContext,
        layer: int,
        position: torch.Tensor,
        rotary: Rotary,
    ) -> torch.Tensor:
        """What the layer adds to ``states``.

        Args:
            states: [batch, queries, hidden].
            context: keys, rotated for their chunk's number, and values, of all layers; its batch may be repeated.
            layer: its number.
            position: the position of all queries of a row, its number of chunks, [batch].
            rotary: of the layer.

        Returns:
            [batch, queries, hidden].
        """
        batch, queries, _ = states.shape
        # Trained weights are in float32 whatever the model's dtype.
        own = states.to(self.q_proj.weight.dtype)
        query = self.q_proj(self.norm(own)).view(batch, queries, self.heads, self.head_dim)
        # one position for all queries of a row: the batch stands where rotate_keys expects the tokens
        query = rotate_keys(query.permute(1, 2, 0, 3), position, rotary).permute(2, 1, 0, 3)
        packed = query.reshape(batch, self.kv_heads, self.heads // self.kv_heads * queries, self.head_dim)
        # beams and several answers per question repeat the rows of the batch
        times = batch // context.counts.shape[1]
        starts, counts = (part[layer].repeat_interleave(times, 0) for part in (context.starts, context.counts))
        # A row without context has nothing to attend to and gets nothing.
        out, _ = ragged_attention(packed, context.keys, context.values, starts, counts)
        out = out.view(batch, self.heads, queries, self.head_dim)
        return self.o_proj(out.transpose(1, 2).reshape(batch, queries, -1)).to(states.dtype)


class CrossAttentionInjection(nn.Module):
    """Cross-attention on top of self-attention in each of the bottom M layers, residual, before the MLP.

    Positions are the chunks' (arXiv 2603.04759): keys of the i-th chunk take position i, all queries take n.

    Args:
        model: the whole causal language model; it is hooked while :meth:`installed` is entered, and never edited.
        layers: M.
        rotary: of the model's layers.
    """

    kind: InjectionKind = "cross_attention"
    in_cache = False

    def __init__(self, model: PreTrainedModel, layers: int, rotary: Rotary):
        super().__init__()
        config = model.config
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.layers = layers
        self.rotary = rotary
        self.upper: LowRank | None = None
        attentions = [
            CrossAttention(config.hidden_size, heads, config.num_key_value_heads, head_dim, norm_eps(config))
            for _ in range(layers)
        ]
        self.attentions = nn.ModuleList(attentions).to(device=model.device, dtype=model.dtype)
        for cross, layer in zip(attentions, model.base_model.layers, strict=False):
            own = getattr(layer.self_attn, "q_proj", None)
            if own is not None:  # Phi-3 keeps q, k and v in one projection
                cross.q_proj.weight.data.copy_(own.weight.data)

    def adapt_upper(self, model: PreTrainedModel, rank: int | None, alpha: float | None) -> None:
        """Have low-rank updates for the attention of the layers above, which add nothing before they are trained.

        The paper trains that attention beside the injection's own; it is updated behind a context only.

        Args:
            model: the whole causal language model.
            rank, alpha: updates are scaled by ``alpha / rank``; None for none.
        """
        layers = model.config.num_hidden_layers
        scale = None if rank is None or alpha is None else alpha / rank
        self.upper = None if rank is None or scale is None else LowRank(model, layers, rank, scale, first=self.layers)

    def installed(
        self, model: PreTrainedModel, contexts: Sequence[ContextKV | None], sink: int, prefix: int
    ) -> AbstractContextManager[None]:
        """Inject the contexts into every forward pass of ``model`` while entered, which may be again and again.

        Args:
            model: the whole causal language model.
            contexts: one per row of the batch; None injects nothing into that row.
            sink: tokens in front of each chunk while it was encoded.
            prefix: of the prompt; positions are the chunks' here, and none is taken by it.
        """
        if all(c is None for c in contexts):
            return nullcontext()
        parts: list[list[RaggedKV]] = []
        deltas: list[list[torch.Tensor]] = []
        for context in contexts:
            parts.append([])
            deltas.append([])
            for number, kv, positions in _by_chunk(context):
                parts[-1].append(kv)
                deltas[-1].append(number - (sink + positions))
        # In the type of what attends to it.
        dtype = self.attentions.get_parameter("0.q_proj.weight").dtype
        ragged = assemble_ragged(parts, deltas, self.rotary, dtype, model.device)
        position = torch.tensor([len(c.chunks) if c is not None else 0 for c in contexts], device=model.device)
        return nullcontext() if ragged is None else CrossAttentionHooks(self, model, ragged, position)


def _by_chunk(context: ContextKV | None) -> Iterator[tuple[int, RaggedKV, torch.Tensor]]:
    """All that a context shows, as ragged rows: the chunk's number, the rows, and which of the encoding they are."""
    if context is None:
        return
    stood = context.positions or context.rows
    for number, (chunk, rows, positions) in enumerate(zip(context.chunks, context.rows, stood, strict=True)):
        if chunk is not None and len(rows):
            kept = torch.zeros(chunk.tokens, dtype=torch.bool)
            kept[rows] = True
            heads = chunk.layers * chunk.data.shape[2]
            whole = chunk.ragged(kept.expand(chunk.layers, chunk.data.shape[2], -1))
            yield number, whole, positions.repeat(heads)
    for number, part in enumerate(context.coarse or ()):
        if part is not None:
            yield number, part.kv, part.positions


class CrossAttentionHooks(AbstractContextManager[None]):
    """While entered, every forward pass of the model attends to a batch's contexts in its bottom layers.

    Args:
        injection: whose modules are used.
        model: the whole causal language model.
        context, position: what all layers are given, see :class:`CrossAttention`.
    """

    def __init__(
        self,
        injection: CrossAttentionInjection,
        model: PreTrainedModel,
        context: RaggedContext,
        position: torch.Tensor,
    ):
        self._layers = list(zip(injection.attentions, model.base_model.layers, strict=False))
        self._model, self._upper, self._stack = model, injection.upper, ExitStack()
        self._context, self._position, self._rotary = context, position, injection.rotary
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        if self._upper is not None:
            self._stack.enter_context(self._upper.installed(self._model))
        for number, (cross, layer) in enumerate(self._layers):
            own = self._rotary.of_layer(number)
            residual: dict[str, torch.Tensor] = {}

            def keep_input(_: nn.Module, args: tuple, kwargs: dict, residual: dict = residual) -> None:
                residual["states"] = args[0] if args else kwargs["hidden_states"]

            def add_cross(
                _: nn.Module,
                args: tuple,
                output: object,
                cross: nn.Module = cross,
                number: int = number,
                rotary: Rotary = own,
                residual: dict = residual,
            ) -> object:
                first = output[0] if isinstance(output, tuple) else output
                states = residual.pop("states") + first
                position = self._position.repeat_interleave(len(states) // len(self._position))
                added = first + cross(states, self._context, number, position, rotary)
                return (added, *output[1:]) if isinstance(output, tuple) else added

            self._handles.append(layer.register_forward_pre_hook(keep_input, with_kwargs=True))
            self._handles.append(attention_output(layer).register_forward_hook(add_cross))

    def __exit__(self, *raised: object) -> None:
        self._stack.close()
        while self._handles:
            self._handles.pop().remove()


def norm_eps(config: PretrainedConfig) -> float:
    """What keeps a model's norms from dividing by zero, by whatever name its family has for it."""
    names = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")
    return next((eps for name in names if (eps := getattr(config, name, None)) is not None), 1e-5)


def attention_output(layer: nn.Module) -> nn.Module:
    """The module of a decoder layer whose output joins the residual stream after self-attention.

    Most families add the attention's output itself; those that norm behind the attention (OLMo-2) add that norm's.
    """
    return layer.get_submodule("self_attn" if hasattr(layer, "input_layernorm") else "post_attention_layernorm")
