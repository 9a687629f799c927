"""Product quantisation: codes name the nearest centroid, centroids lie where the rows are, all of it is seeded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.components.train.codebook import decode, fit_codebook, k_means
from narrowcast.components.train.forms import Codebook
from narrowcast.errors import NarrowcastError


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(2, 20),
    st.integers(1, 60),
    st.sampled_from((32, 16)),
    st.integers(0, 2**31),
)
def test_every_group_of_a_row_is_its_nearest_stored_centroid(groups, width, centroids, more_rows, bits, seed):
    rows = np.random.default_rng(seed).normal(size=(centroids + more_rows, groups * width)).astype(np.float32)
    form = Codebook(groups=groups, centroids=centroids)
    codes_Rb, centroids_GKv = fit_codebook(torch.tensor(rows), form, bits)
    assert centroids_GKv.dtype == (torch.float32 if bits == 32 else torch.float16)
    assert centroids_GKv.shape == (groups, centroids, width)
    assert codes_Rb.shape == (len(rows), form.code_bytes)
    found = decode(codes_Rb, centroids_GKv, form).numpy()
    for r, row in enumerate(rows):
        for g in range(groups):
            part = slice(g * width, (g + 1) * width)
            stored = centroids_GKv[g].float().numpy()
            distances = ((stored - row[part]) ** 2).sum(1)
            assert any(np.array_equal(found[r, part], centroid) for centroid in stored)
            assert ((found[r, part] - row[part]) ** 2).sum() <= distances.min() + 1e-5


def test_rows_around_a_few_places_are_found():
    generator = torch.Generator().manual_seed(3)
    places = torch.tensor([[5.0, 5.0], [-5.0, 0.0], [0.0, -5.0], [9.0, -9.0]])
    which = torch.randint(0, 4, (500,), generator=generator)
    rows = places[which] + 0.01 * torch.randn(500, 2, generator=generator)
    form = Codebook(groups=1, centroids=4)
    back = decode(*fit_codebook(rows, form, 32), form)
    assert (back - rows).abs().max() < 0.1


def test_centroids_without_points_move_to_where_points_are():
    points = torch.zeros(1, 50, 1)
    points[0, :3, 0] = torch.tensor([1.0, 2.0, 3.0])
    centroids = k_means(points, 4, torch.Generator().manual_seed(0))
    assert sorted(centroids.flatten().tolist()) == [0.0, 1.0, 2.0, 3.0]


def test_same_rows_same_codebook():
    rows = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    form = Codebook(groups=3, centroids=7)
    first, again = fit_codebook(rows, form, 16), fit_codebook(rows, form, 16)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_more_centroids_err_less():
    rows = torch.randn(2000, 4, generator=torch.Generator().manual_seed(1))

    def error(form: Codebook) -> float:
        return float((decode(*fit_codebook(rows, form, 32), form) - rows).square().mean())

    errors = [error(Codebook(groups=2, centroids=centroids)) for centroids in (2, 8, 32, 128)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(1 - 1 / np.pi, abs=0.03)  # two halves of a plane: their means along one axis
    assert error(Codebook(groups=4, centroids=8)) < errors[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_values_that_cannot_be_stored_are_refused(value):
    rows = torch.zeros(9, 2)
    rows[3, 1] = value
    with pytest.raises(NarrowcastError, match="store"):
        fit_codebook(rows, Codebook(groups=1, centroids=2), 16)
