"""DLRM: dot products between all embeddings and the processed dense features (arXiv 1906.00091, section 2)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from narrowcast.components.train.heads.registry import register
from narrowcast.components.train.mlp import mlp
from narrowcast.errors import NarrowcastError


@dataclass(frozen=True, kw_only=True, slots=True)
class DLRMConfig:
    """`hidden`: widths of the top network's layers; `bottom`: of the dense features' layers before width D."""

    name: ClassVar[str] = "dlrm"
    hidden: tuple[int, ...]
    dropout: float
    bottom: tuple[int, ...] = (64,)


@register(DLRMConfig)
class DLRM(nn.Module):
    """Dense features pass a bottom network to one more token of width D; the dot products of all pairs of tokens, with
    that token beside them, pass the top network to one logit.

    Without dense features there is no bottom token (our choice).
    """

    pairs: Tensor

    def __init__(self, config: DLRMConfig, num_tokens: int, width: int, num_dense: int) -> None:
        super().__init__()
        num_vectors = num_tokens + (1 if num_dense else 0)
        if num_vectors < 2:
            raise NarrowcastError(
                "dlrm needs at least two inputs to multiply: add a field to the schema or choose deepfm"
            )
        self.bottom = mlp(num_dense, (*config.bottom, width), 0.0) if num_dense else None
        self.register_buffer("pairs", torch.tril_indices(num_vectors, num_vectors, offset=-1), persistent=False)
        num_products = num_vectors * (num_vectors - 1) // 2
        self.top = mlp(num_products + (width if num_dense else 0), config.hidden, config.dropout, num_outputs=1)

    def forward(self, tokens_BTD: Tensor, dense_BN: Tensor) -> Tensor:
        """Logits, B."""
        if self.bottom is None:
            return self.top(self.products(tokens_BTD)).squeeze(1)
        bottom_BD = self.bottom(dense_BN)
        products_BP = self.products(torch.cat([bottom_BD.unsqueeze(1), tokens_BTD], dim=1))
        return self.top(torch.cat([bottom_BD, products_BP], dim=1)).squeeze(1)

    def products(self, vectors_BVD: Tensor) -> Tensor:
        """Dot products of all pairs, B x V (V - 1) / 2."""
        products_BVV = vectors_BVD @ vectors_BVD.transpose(1, 2)
        return products_BVV[:, self.pairs[0], self.pairs[1]]
