"""All of a model but its tables: the history encoder and the head. Trained and packed models score with the same one.

Shape letters: B rows, F categorical fields, T tokens, L sequence length, D width, N numeric fields.
"""

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from narrowcast.components.data.encoded import Layout
from narrowcast.components.data.schema import HISTORY
from narrowcast.components.train.config import ModelConfig
from narrowcast.components.train.heads import build_head
from narrowcast.components.train.histories import Amortised, build_history
from narrowcast.components.train.histories.mean import masked_mean


class Found(NamedTuple):
    """What was looked up for a batch: the rows of its categorical fields (B x F x D), of its sequences' elements by
    field (B x L x D), and which elements are no padding (B x L, bool). A sequence of one row, 1 x L, stands for all."""

    categorical_BFD: Tensor
    rows_BLD: dict[str, Tensor]
    valid_BL: dict[str, Tensor]


class Scorer(nn.Module):
    """Tokens from what was looked up, one a categorical field, then one a sequence; and the head's logit.

    The history's token is the history encoder's, every other sequence's the mean over its elements. The candidate that
    an encoder reads is the token of the field in whose table the history's items are.
    """

    def __init__(self, layout: Layout, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.layout = layout
        num_tokens = len(layout.categorical) + len(layout.sequences)
        self.head = build_head(config.head, num_tokens, width, len(layout.numeric))
        self.history = build_history(config.history_encoder, width) if HISTORY in layout.sequences else None
        self._amortises = isinstance(self.history, Amortised)

    def forward(self, found: Found, dense_BN: Tensor) -> Tensor:
        """Logits, B."""
        return self.head(self.tokens(found), dense_BN)

    @property
    def amortised(self) -> Amortised | None:
        """The history encoder, where it can encode one history once for several candidates."""
        return cast(Amortised, self.history) if self._amortises else None

    def tokens(self, found: Found) -> Tensor:
        """B x T x D."""
        found_tokens = {}
        for name in self.layout.sequences:
            rows_BLD, valid_BL = found.rows_BLD[name], found.valid_BL[name]
            if self.history is not None and name == HISTORY:
                found_tokens[name] = self.history_tokens(rows_BLD, valid_BL, self.candidates(found.categorical_BFD))
            else:
                found_tokens[name] = masked_mean(rows_BLD, valid_BL)
        return self.joined(found.categorical_BFD, found_tokens)

    def candidates(self, categorical_BFD: Tensor) -> Tensor:
        """The token that the history encoder reads, B x D."""
        return categorical_BFD[:, self.layout.categorical.index(self.layout.table_of[HISTORY])]

    def history_tokens(self, rows_BLD: Tensor, valid_BL: Tensor, candidate_BD: Tensor) -> Tensor:
        """B x D. One history for several candidates is encoded once where the encoder can."""
        assert self.history is not None
        token_BD: Tensor
        num_rows = len(candidate_BD)
        if len(rows_BLD) == num_rows:
            token_BD = self.history(rows_BLD, valid_BL, candidate_BD)
            return token_BD
        if self.amortised:
            (token_1BD,) = self.amortised.score(
                [(self.amortised.encode(rows_BLD, valid_BL), candidate_BD.unsqueeze(0))]
            )
            return token_1BD.squeeze(0)
        token_BD = self.history(rows_BLD.expand(num_rows, -1, -1), valid_BL.expand(num_rows, -1), candidate_BD)
        return token_BD

    def joined(self, categorical_BFD: Tensor, sequence_BD: Mapping[str, Tensor]) -> Tensor:
        """B x T x D from the fields' tokens and the sequences', by field; one row of these stands for all rows."""
        num_rows = len(categorical_BFD)
        tokens = [sequence_BD[name].expand(num_rows, -1).unsqueeze(1) for name in self.layout.sequences]
        return torch.cat([categorical_BFD, *tokens], dim=1)


def seeded_scorer(layout: Layout, width: int, config: ModelConfig, seed: int) -> Scorer:
    """The scorer for `layout`, drawn from `seed` without touching torch's default generator.

    The head's values do not depend on the history encoder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Scorer(layout, width, config)


def valid_elements(sequences: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which elements of padded sequences (each B x L) are ids."""
    return {name: ids_BL >= 0 for name, ids_BL in sequences.items()}
