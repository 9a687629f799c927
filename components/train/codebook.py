"""Product quantisation: rows as codes into a few centroids a group of columns, fitted to trained rows by k-means.

DPQ's and MGQE's stored form (arXiv 2002.08530, section 3): codes and a codebook are all that is served. To fit it after
training, by k-means on a seeded sample, is our choice; so is that all rows count alike, as weighting them by training
frequency gained nothing on validation (MovieLens-100K).

Shape letters: R rows, G groups of columns, v columns of a group, w = G v columns, K centroids, S sampled rows, b bytes.
"""

import torch
from torch import Tensor

from narrowcast.components.train.forms import Codebook
from narrowcast.components.train.quantise import packed_bits, to_float16, unpacked_bits
from narrowcast.errors import NarrowcastError

SAMPLE = 256
"""Rows that centroids are fitted to, at most, for each of them."""
ITERATIONS = 15
CHUNK = 1024
"""Rows whose distances to all centroids are computed at once."""


def fit_codebook(rows_Rw: Tensor, form: Codebook, bits: int) -> tuple[Tensor, Tensor]:
    """Every row's codes (R x b, uint8) and the centroids (G x K x v, float32 or float16 by `bits`).

    A code names the centroid nearest to its row as it is stored; the lower one of equals. Same rows, same outcome.
    Raises NarrowcastError for values that cannot be stored.
    """
    if not bool(rows_Rw.isfinite().all()):
        raise NarrowcastError(
            "an embedding table holds values that no codebook can store (NaN or infinite): train again with a smaller "
            "learning rate"
        )
    generator = torch.Generator().manual_seed(0)
    sample = (
        torch.randperm(len(rows_Rw), generator=generator)[: SAMPLE * form.centroids].sort().values.to(rows_Rw.device)
    )
    centroids_GKv = k_means(_grouped(rows_Rw[sample], form), form.centroids, generator)
    stored_GKv = to_float16(centroids_GKv) if bits == 16 else centroids_GKv
    codes_RG = torch.cat(
        [nearest(_grouped(part_Rw, form), stored_GKv.float()).T.to(torch.uint8) for part_Rw in rows_Rw.split(CHUNK)]
    )
    return packed_bits(codes_RG, form.code_bits), stored_GKv.contiguous()


def decode(codes_Rb: Tensor, centroids_GKv: Tensor, form: Codebook) -> Tensor:
    """The float32 rows, R x w."""
    codes_RG = unpacked_bits(codes_Rb, form.code_bits, form.groups).long()
    groups_G = torch.arange(form.groups, device=codes_RG.device)
    return centroids_GKv[groups_G, codes_RG].float().flatten(1)


def k_means(points_GSv: Tensor, num_centroids: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm for all groups at once, G x K x v. A centroid without points moves to the point farthest from
    its own, each to another."""
    width = points_GSv.shape[2]
    centroids_GKv = first_centroids(points_GSv, num_centroids, generator)
    for _ in range(ITERATIONS):
        code_GS = torch.cat([nearest(part, centroids_GKv) for part in points_GSv.split(CHUNK, dim=1)], dim=1)
        index_GSv = code_GS.unsqueeze(2).expand_as(points_GSv)
        sums_GKv = torch.zeros_like(centroids_GKv).scatter_add_(1, index_GSv, points_GSv)
        counts_GK = torch.zeros_like(sums_GKv[..., 0]).scatter_add_(1, code_GS, torch.ones_like(points_GSv[..., 0]))
        error_GS = (points_GSv - centroids_GKv.gather(1, index_GSv)).square().sum(2)
        farthest_GK = error_GS.topk(num_centroids, dim=1).indices
        spare_GKv = points_GSv.gather(1, farthest_GK.unsqueeze(2).expand(-1, -1, width))
        means_GKv = sums_GKv / counts_GK.clamp(min=1).unsqueeze(2)
        centroids_GKv = torch.where(counts_GK.unsqueeze(2) > 0, means_GKv, spare_GKv)
    return centroids_GKv


def first_centroids(points_GSv: Tensor, num_centroids: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each next one is a point drawn by its squared distance to those
    drawn before; G x K x v."""
    num_groups = len(points_GSv)
    weight_GS = torch.ones_like(points_GSv[..., 0])
    distance_GS = torch.full_like(weight_GS, torch.inf)
    drawn = []
    for _ in range(num_centroids):
        point_G = torch.multinomial(weight_GS, 1, generator=generator).squeeze(1)
        drawn.append(points_GSv[torch.arange(num_groups), point_G])
        distance_GS = torch.minimum(distance_GS, (points_GSv - drawn[-1].unsqueeze(1)).square().sum(2))
        is_spread_G1 = (distance_GS > 0).any(1, keepdim=True)
        weight_GS = torch.where(is_spread_G1, distance_GS, 1.0)
    return torch.stack(drawn, dim=1)


def nearest(points_GSv: Tensor, centroids_GKv: Tensor) -> Tensor:
    """The number of each point's nearest centroid, G x S."""
    half_norm_G1K = centroids_GKv.square().sum(2).unsqueeze(1) / 2
    return torch.baddbmm(half_norm_G1K, points_GSv, centroids_GKv.transpose(1, 2), alpha=-1).argmin(2)


def _grouped(rows_Sw: Tensor, form: Codebook) -> Tensor:
    return rows_Sw.unflatten(1, (form.groups, -1)).transpose(0, 1).contiguous()
