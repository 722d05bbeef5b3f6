"""Rotary positions: by which angles the layers of a model turn which channels of their keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Rotary:
    """How the keys of each layer are turned.

    Attributes:
        inv_freq: radians per position, [kinds, rotary_dim / 2]; rotary_dim may be smaller than head_dim. Zeros leave
            the keys of layers without positions as they are.
        kinds: for each layer the row of ``inv_freq`` that is its own; None is the first for all.
        interleaved: channel 2i is paired with 2i + 1, and not i with i + rotary_dim / 2.
    """

    inv_freq: torch.Tensor
    kinds: tuple[int, ...] | None = None
    interleaved: bool = False

    @classmethod
    def of(cls, rotary: Rotary | torch.Tensor) -> Rotary:
        """What all layers share, given as frequencies [rotary_dim / 2] alone; or a Rotary as it is."""
        return rotary if isinstance(rotary, Rotary) else cls(rotary[None])

    @property
    def half(self) -> int:
        """Pairs of channels that are turned."""
        return self.inv_freq.shape[1]

    @property
    def uniform(self) -> bool:
        """Whether all layers turn alike."""
        return self.kinds is None or len(set(self.kinds)) <= 1

    def of_layer(self, layer: int) -> Rotary:
        """That of one layer alone."""
        kind = 0 if self.kinds is None else self.kinds[layer]
        return Rotary(self.inv_freq[kind : kind + 1], None, self.interleaved)

    def by_layer(self, layers: int) -> list[int]:
        """For each of the bottom ``layers`` the row of ``inv_freq`` that is its own."""
        return [0] * layers if self.kinds is None else list(self.kinds[:layers])

    def cos_sin(self, delta: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the angles by which keys are turned, float32 [kinds, tokens, rotary_dim / 2].

        Args:
            delta: positions to move each token by, [tokens], integers.
            device: where they are to be.
        """
        # float64, because an error of the angle grows with the delta and every layer would inherit it.
        # Apple's GPUs have none.
        at = torch.device("cpu") if device.type == "mps" else device
        angle = delta.to(at, torch.float64)[:, None] * self.inv_freq.to(at, torch.float64)[:, None]
        return angle.cos().to(device, torch.float32), angle.sin().to(device, torch.float32)

    def pairs(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the first and the second channels of all pairs, [..., rotary_dim / 2] of keys [..., head_dim]."""
        if self.interleaved:
            return keys[..., 0 : 2 * self.half : 2], keys[..., 1 : 2 * self.half : 2]
        return keys[..., : self.half], keys[..., self.half : 2 * self.half]

    def turn(self, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Keys [..., head_dim] turned by angles that are broadcast to [..., rotary_dim / 2]; computed in float32."""
        first, second = (part.float() for part in self.pairs(keys))
        turned = first * cos - second * sin, second * cos + first * sin
        joined = torch.stack(turned, dim=-1).flatten(-2) if self.interleaved else torch.cat(turned, dim=-1)
        joined, rest = joined.to(keys.dtype), keys[..., 2 * self.half :]
        return torch.cat([joined, rest], dim=-1) if rest.shape[-1] else joined
