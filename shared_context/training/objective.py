"""What is minimised: how unlikely the answers are behind the compressed contexts."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from random import Random

import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache

from shared_context.config import require
from shared_context.errors import UnsupportedModelError
from shared_context.kernels import ChunkKV, rotate_keys
from shared_context.model.cache import CACHE_ARGUMENT
from shared_context.model.compressor import Compressor, bottom_layers
from shared_context.model.context import CoarseKV, ContextKV
from shared_context.model.cross_attention import CrossAttentionInjection
from shared_context.model.low_rank import InjectionLoRA
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.training.examples import Example
from shared_context.training.layout import Layout, LayoutMaker
from shared_context.training.sharding import gathered_in_backward
from shared_context.tree import important_rows


class InjectionObjective(nn.Module):
    """The trained weights of an injection, and the loss they are trained by.

    The arithmetic is that of :meth:`SharedLLMModel.score`, with gradients: chunks are encoded behind the shared prefix,
    rows of their encodings are turned to contiguous positions and stand in the decoder's cache. Where rows are chosen
    by importance, which is what the weights of the moment need, all rows stand there, and a mask hides from each head
    what it does not keep. The base model is no part of this module, so that neither optimizers nor checkpoints see its
    weights.

    Args:
        model: the untrained model.
        layouts: lays out batches.
        low_rank: rank and alpha of the low-rank updates of prefix injection, or with cross-attention injection of the
            attention of the layers above, None for none there.
        distillation: weight of the divergence from the untrained model reading every token of the context as text; 0
            spares that reading.
        self_distillation: weight of the divergence from itself, as it is now, shown every row of the context; 0
            spares that reading.

    Raises:
        UnsupportedModelError: with prefix injection, some layers see less than the model's window.
    """

    def __init__(
        self,
        model: SharedLLMModel,
        layouts: LayoutMaker,
        *,
        low_rank: tuple[int, float] | None,
        distillation: float = 0.0,
        self_distillation: float = 0.0,
    ):
        super().__init__()
        require(distillation >= 0, "distillation", distillation, "must be 0 or more")
        require(self_distillation >= 0, "self_distillation", self_distillation, "must be 0 or more")
        for parameter in model.hf_model.parameters():
            parameter.requires_grad_(False)
        hf = model.hf_model
        self._base = (model,)  # in a tuple, or it would become a submodule
        self._layouts = layouts
        self._prefix = list(model.prompt_format.prefix)
        self._whole = bottom_layers(hf, hf.config.num_hidden_layers)
        self._compressor = Compressor(
            hf, model.injection.layers, self._prefix, model.compressor.request_ids, model.context_window
        )
        self.distillation, self.self_distillation = distillation, self_distillation
        self.tokens_seen: torch.Tensor
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.long))
        if isinstance(model.injection, CrossAttentionInjection):
            # a copy, so that the model stays as it was given
            own = deepcopy(model.injection).float()
            own.adapt_upper(hf, *(low_rank or (None, None)))
            self.trained: CrossAttentionInjection | InjectionLoRA = own
        else:
            _check_windows(model)
            assert low_rank is not None  # as prefix injection is trained
            self.trained = InjectionLoRA(hf, model.injection.layers, *low_rank)

    @property
    def model(self) -> SharedLLMModel:
        """The base model."""
        return self._base[0]

    def forward(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """The loss of a batch under a random layout, drawn from torch's own random state.

        Returns:
            ``loss``, and its parts without gradients: ``nll`` and, with distillation, ``divergence`` and
            ``self_divergence``; each a mean over the examples of their mean per answer token.
        """
        self.tokens_seen += sum(map(len, examples))
        rng = Random(int(torch.randint(2**62, ()).item()))
        layout = self._layouts.draw(examples, rng)
        kv = self._key_values(layout)
        logits = self._behind(examples, layout, kv)
        loss = nll = _answer_mean(examples, self._cross_entropy(examples, logits)).mean()
        parts = {"nll": nll.detach()}
        if self.distillation or self.self_distillation:
            student = functional.log_softmax(logits.float(), dim=-1)
            with torch.no_grad():
                teachers = [
                    ("divergence", self.distillation, lambda: self.teacher_logits(examples)),
                    ("self_divergence", self.self_distillation, lambda: self._behind(examples, layout.in_full, kv)),
                ]
                read = [(name, weight, teach()) for name, weight, teach in teachers if weight]
            for name, weight, teacher in read:
                divergence = _answer_mean(examples, _divergence(teacher, student)).mean()
                loss = loss + weight * divergence
                parts[name] = divergence.detach()
        return {"loss": loss, **parts}

    @torch.no_grad()
    def nll(self, examples: Sequence[Example], ratio: int) -> list[float]:
        """Mean negative log-likelihood per answer token of each example, its whole context shown at one grain."""
        logits = self.logits(examples, self._layouts.fixed(examples, ratio))
        return _answer_mean(examples, self._cross_entropy(examples, logits)).tolist()

    @torch.no_grad()
    def teacher_nll(self, examples: Sequence[Example]) -> list[float]:
        """The same of the untrained model, which reads every token of the context as text."""
        return _answer_mean(examples, self._cross_entropy(examples, self.teacher_logits(examples))).tolist()

    def logits(self, examples: Sequence[Example], layout: Layout) -> torch.Tensor:
        """Logits [examples, longest answer, vocabulary] of the answers, those of shorter ones at the end."""
        return self._behind(examples, layout, self._key_values(layout))

    def _key_values(self, layout: Layout) -> torch.Tensor | list[ChunkKV]:
        """The encodings of a layout's chunks: of prefix injection with gradients, of cross-attention untrained."""
        chunks = [torch.tensor(chunk) for chunk in layout.chunks]
        if isinstance(self.trained, CrossAttentionInjection):
            with torch.no_grad():  # not inference mode: sharded layers are gathered for gradients into the same tensors
                kv = self._compressor.key_values(chunks)
            return _by_chunk(kv, layout)
        hf = self.model.hf_model
        with self.trained.compress.installed(hf):
            kv = self._compressor.key_values(chunks)
        return gathered_in_backward(kv, hf.base_model.layers[self._compressor.layers - 1])

    def _behind(self, examples: Sequence[Example], layout: Layout, kv: torch.Tensor | list[ChunkKV]) -> torch.Tensor:
        """:meth:`logits` behind encodings that are there already."""
        if isinstance(kv, list):
            return self._logits_with_cross_attention(examples, layout, kv)
        hf = self.model.hf_model
        assert isinstance(self.trained, InjectionLoRA)
        if layout.chosen_by_importance:
            with torch.no_grad(), self.trained.compress.installed(hf):
                self._compressor.read_prefix()
        with self.trained.decode.installed(hf):
            prefix_kv = self._whole.key_values(torch.tensor([self._prefix], device=hf.device))
            prefix_kv = gathered_in_backward(prefix_kv, hf.base_model.layers[-1])
            cache, hidden = self._cache(layout, kv, prefix_kv), self._hidden(layout, kv)
            return self._decode(examples, cache, self._context_mask(layout), hidden)

    @torch.no_grad()
    def _important(self, layout: Layout, kv: Sequence[ChunkKV]) -> list[list[torch.Tensor]]:
        """For each example and piece, which rows of its chunk each head keeps, bool [M, kv_heads, tokens]."""
        scores = self._compressor.importance([torch.tensor(chunk) for chunk in layout.chunks], kv)
        return [
            [
                torch.from_numpy(important_rows(scores[n].flatten(0, 1).float().numpy(), spans)).view_as(scores[n])
                for (n, _), spans in zip(pieces, coarse, strict=True)
            ]
            for pieces, coarse in zip(layout.shown, layout.coarse, strict=True)
        ]

    def _hidden(self, layout: Layout, kv: torch.Tensor) -> torch.Tensor | None:
        """Which columns of the contexts each head does not see, bool [M, examples, kv_heads, columns]."""
        if not layout.chosen_by_importance:
            return None
        width = max(_entries(pieces) for pieces in layout.shown)
        hidden = torch.zeros(kv.shape[1], len(layout.shown), kv.shape[3], width, dtype=torch.bool)
        kept = self._important(layout, _by_chunk(kv.detach(), layout))
        for number, (pieces, coarse) in enumerate(zip(layout.shown, layout.coarse, strict=True)):
            at = width - _entries(pieces)
            for (_, rows), spans, mask in zip(pieces, coarse, kept[number], strict=True):
                for start, end, _ in spans:
                    first = at + start - rows[0]
                    hidden[:, number, :, first : first + end - start] = ~mask[:, :, start:end]
                at += len(rows)
        return hidden.to(kv.device)

    @torch.no_grad()
    def teacher_logits(self, examples: Sequence[Example]) -> torch.Tensor:
        """Like :meth:`logits`, of the untrained model that reads the contexts as text."""
        texts = [[*self._prefix, *e.context, *e.prompt, *e.answer[:-1]] for e in examples]
        return self._run(examples, texts, None, torch.zeros(len(examples), 0, dtype=torch.long))

    def _cache(self, layout: Layout, kv: torch.Tensor, prefix_kv: torch.Tensor) -> DynamicCache:
        """The decoder's cache: contexts, padded on the left, then the prefix; as PrefixInjection fills it."""
        chunk_size, width = kv.shape[4], max(_entries(pieces) for pieces in layout.shown)
        # One gather for the whole batch. A padded place takes the first row of all, which the mask hides.
        rows = torch.zeros(len(layout.shown), width, dtype=torch.long)
        deltas = torch.zeros_like(rows)
        for number, pieces in enumerate(layout.shown):
            own = torch.tensor([row for _, rows in pieces for row in rows])
            start = torch.tensor([chunk * chunk_size for chunk, rows in pieces for _ in rows])
            rows[number, width - len(own) :] = start + own
            # a row stands behind the prefix when it is encoded and when it is read
            deltas[number, width - len(own) :] = torch.arange(len(own)) - own
        taken = kv.transpose(2, 3).flatten(3, 4)[:, :, :, rows.flatten().to(kv.device)]
        taken = torch.stack([rotate_keys(taken[0], deltas.flatten(), self.model.injection.rotary), taken[1]])
        context = taken.unflatten(3, rows.shape).transpose(2, 3)
        prefix_kv = prefix_kv.expand(-1, -1, len(rows), -1, -1, -1)
        cache = DynamicCache()
        # Unbound once: the gradient of an index into all layers is as large as all layers, for each of them.
        injected = zip(*(part.unbind() for part in context.unbind()), strict=True)
        for layer, (keys, values) in enumerate(zip(*(part.unbind() for part in prefix_kv.unbind()), strict=True)):
            if (kv_of_context := next(injected, None)) is not None:
                keys = torch.cat([kv_of_context[0], keys], dim=2)
                values = torch.cat([kv_of_context[1], values], dim=2)
            cache.update(keys, values, layer)
        return cache

    def _context_mask(self, layout: Layout) -> torch.Tensor:
        """1 where a column in front of the running text is a context's or the prefix's, 0 where it is padding."""
        sizes = torch.tensor([_entries(pieces) for pieces in layout.shown])
        columns = torch.arange(int(sizes.max()))
        context = columns >= (len(columns) - sizes)[:, None]
        return torch.cat([context, torch.ones(len(sizes), len(self._prefix), dtype=torch.bool)], dim=1).long()

    def _decode(
        self,
        examples: Sequence[Example],
        cache: DynamicCache,
        before: torch.Tensor,
        hidden: torch.Tensor | None,
    ) -> torch.Tensor:
        return self._run(examples, [[*e.prompt, *e.answer[:-1]] for e in examples], cache, before, hidden)

    def _run(
        self,
        examples: Sequence[Example],
        texts: Sequence[Sequence[int]],
        cache: DynamicCache | None,
        before: torch.Tensor,
        hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The whole model over texts, padded on the left, behind a cache whose columns ``before`` masks.

        Args:
            hidden: columns of it that single heads do not see, as attention takes them.
        """
        hf = self.model.hf_model
        longest = max(map(len, texts))
        ids = torch.tensor([[0] * (longest - len(text)) + list(text) for text in texts])
        own = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
        mask = torch.cat([before, own], dim=1)
        out = hf.base_model(
            input_ids=ids.to(hf.device),
            attention_mask=mask.to(hf.device),
            position_ids=(mask.cumsum(-1) - 1)[:, before.shape[1] :].clamp(min=0).to(hf.device),
            use_cache=cache is not None,
            **{CACHE_ARGUMENT: cache},
            **({} if hidden is None else {"hidden": hidden}),
        )
        # Two dimensions: over three, a batch's slice of states makes torch copy the vocabulary for each of its rows.
        states = out.last_hidden_state[:, -max(len(e.answer) for e in examples) :]
        return hf.get_output_embeddings()(states.flatten(0, 1)).unflatten(0, states.shape[:2])

    def _logits_with_cross_attention(
        self, examples: Sequence[Example], layout: Layout, kv: list[ChunkKV]
    ) -> torch.Tensor:
        model = self.model
        contexts = []
        kept = self._important(layout, kv) if layout.chosen_by_importance else None
        for number, pieces in enumerate(layout.shown):
            coarse = None
            if kept is not None:
                ragged = [kv[chunk].ragged(mask) for (chunk, _), mask in zip(pieces, kept[number], strict=True)]
                coarse = [CoarseKV(part, part.tokens.long(), part.tokens.long()) for part in ragged]
                hidden = [{row for span in spans for row in range(*span[:2])} for spans in layout.coarse[number]]
                pieces = [
                    (chunk, [row for row in rows if row not in coarsely])
                    for (chunk, rows), coarsely in zip(pieces, hidden, strict=True)
                ]
            ids = [layout.chunks[chunk][row] for chunk, rows in pieces for row in rows]
            rows = [torch.tensor(rows, dtype=torch.long) for _, rows in pieces]
            of_rows = torch.tensor(ids, dtype=torch.long)
            contexts.append(ContextKV([kv[chunk] for chunk, _ in pieces], rows, of_rows, coarse=coarse))
        texts = [[*self._prefix, *e.prompt, *e.answer[:-1]] for e in examples]
        assert isinstance(self.trained, CrossAttentionInjection)
        with self.trained.installed(model.hf_model, contexts, len(self._prefix), prefix=0):
            return self._run(examples, texts, None, torch.zeros(len(examples), 0, dtype=torch.long))

    def _cross_entropy(self, examples: Sequence[Example], logits: torch.Tensor) -> torch.Tensor:
        """[examples, longest answer]; what stands in front of a shorter answer means nothing."""
        width = logits.shape[1]
        answers = torch.tensor([[0] * (width - len(e.answer)) + list(e.answer) for e in examples], device=logits.device)
        flat = functional.cross_entropy(logits.float().flatten(0, 1), answers.flatten(), reduction="none")
        return flat.view(-1, width)


def _check_windows(model: SharedLLMModel) -> None:
    """Masks of columns hide the right ones only where every layer sees all of the model's window."""
    if model.injection.windowed:
        raise UnsupportedModelError(
            f"{model.name} cannot be trained with injection='prefix': some of its layers see less than its window of "
            f"{model.context_window:,} tokens, and what lies within is not told by the columns of a batch. Train it "
            "with injection='cross_attention', or load it with a context_window that all of its layers see."
        )


def _by_chunk(kv: torch.Tensor, layout: Layout) -> list[ChunkKV]:
    """The encodings of a layout's chunks, from one padded tensor as :meth:`Compressor.key_values` gives it."""
    return [ChunkKV(kv[:, :, i, :, : len(chunk)]) for i, chunk in enumerate(layout.chunks)]


def _entries(pieces: Sequence[tuple[int, list[int]]]) -> int:
    return sum(len(rows) for _, rows in pieces)


def _answer_mean(examples: Sequence[Example], values: torch.Tensor) -> torch.Tensor:
    """Mean over each example's answer tokens, [examples], of values [examples, longest answer]."""
    lengths = torch.tensor([len(e.answer) for e in examples], device=values.device)
    answered = torch.arange(values.shape[1], device=values.device) >= (values.shape[1] - lengths)[:, None]
    return torch.where(answered, values, 0.0).sum(dim=1) / lengths


def _divergence(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Of log-probabilities ``student`` from logits ``teacher``, [examples, longest answer]."""
    expected = functional.log_softmax(teacher.float(), dim=-1)
    return (expected.exp() * (expected - student)).sum(dim=-1)
