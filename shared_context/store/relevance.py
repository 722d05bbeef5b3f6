"""How much leaves and nodes have to do with a query: the scores that users see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from shared_context.config import Policy
from shared_context.store.leaves import Leaves
from shared_context.store.query import Query
from shared_context.store.scored import Scored
from shared_context.store.scoring import POLICIES, embedding
from shared_context.tree import Node

CHANCE = 0.55
"""How alike a query's tokens and the most similar ones of a leaf are on average where the two are of different things;
counted in inverse leaf frequencies, with the codes of the default model."""


def relevance(query: Query, leaves: Leaves, rows: torch.Tensor, policy: Policy) -> torch.Tensor:
    """How much leaves have to do with a query, 0 to 1, [rows]; it means the same whatever else is in the store.

    For the policies embedding and last_token that is the cosine which they compare. For the others it is the share of
    the query's tokens, weighted by inverse leaf frequency, that a leaf's tokens are more alike than by CHANCE; where
    there is an embedder, the mean of that and the cosine. Of a query's parts the best counts.

    Args:
        rows: of ``leaves``, in any order.
    """
    found = [_relevance(part, leaves, rows, policy) * weight for part, weight in query.parts]
    return torch.stack(found).amax(dim=0).clamp(0, 1)


def _relevance(query: Query, leaves: Leaves, rows: torch.Tensor, policy: Policy) -> torch.Tensor:
    if policy in ("embedding", "last_token"):
        return POLICIES[policy](query, leaves, rows)
    weights = query.index.weights(query.token_ids)
    said = leaves.late_interaction(query.codes, weights, rows) / weights.sum().clamp(min=1e-6)
    shared = ((said - CHANCE) / (1 - CHANCE)).clamp(min=0)
    if len(query.index.headers):
        of_header = query.headers.of(leaves.document[rows.numpy(force=True)])
        shared = (shared + torch.from_numpy(of_header).to(shared.device) / weights.sum().clamp(min=1e-6)).clamp(max=1)
    return shared if query.embedder is None else (shared + embedding(query, leaves, rows).clamp(min=0)) / 2


RANK = 1e-6
"""What a score is less for each that is ranked before it."""


def node_relevances(
    query: Query,
    leaves: Leaves,
    scored: Scored,
    policy: Policy,
    ranked: Sequence[tuple[int, Node]],
    embedded_level: int,
) -> list[float]:
    """How much nodes have to do with a query, 0 to 1, by chunk and node, from the best to the last.

    A leaf has as much to do with it as the span that it is embedded in: what a question asks and what answers it
    often lie side by side. None has more than one that is ranked before it: on their order the policy has the last
    word, which knows of all leaves.

    Args:
        query: what nodes are compared with.
        leaves: those of the index.
        scored: those that are considered, by chunk.
        policy: how they were scored.
        ranked: chunk and node of each, best first.
        embedded_level: of the spans that are embedded, root 0.
    """
    if not ranked:
        return []
    counts = scored.leaves.isfinite().sum(dim=1).numpy(force=True)
    rows: list[int] = []
    sizes: list[int] = []
    for chunk, node in ranked:
        level = min(node.level, embedded_level)
        span, below = node.index >> (node.level - level), scored.height - level
        slots = range(span << below, min((span + 1) << below, int(counts[chunk])))
        rows += [int(scored.first[chunk]) + slot for slot in slots]
        sizes.append(len(slots))
    of_leaves = relevance(query, leaves, torch.tensor(rows, device=leaves.device), policy).numpy(force=True)
    of_nodes = np.maximum.reduceat(of_leaves, np.cumsum([0, *sizes[:-1]]))
    # A little less for each rank: whoever orders nodes by their scores finds the policy's order.
    behind_others = RANK * np.arange(len(of_nodes))
    return (np.minimum.accumulate(of_nodes).astype(float) - behind_others).clip(min=0).tolist()
