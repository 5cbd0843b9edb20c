import pytest
import torch

from pullback.geodesics.blocktridiagonal import factor, solve


def system(batch=5, n=7, k=3, seed=0):
    """Random positive definite block-tridiagonal matrices, in blocks and dense."""
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randn(batch, n, k, k, generator=generator, dtype=torch.float64).tril() + 3 * torch.eye(k)
    below = torch.randn(batch, n - 1, k, k, generator=generator, dtype=torch.float64)
    dense = torch.zeros(batch, n * k, n * k, dtype=torch.float64)
    for i in range(n):
        dense[:, i * k : (i + 1) * k, i * k : (i + 1) * k] = lower[:, i]
        if i:
            dense[:, i * k : (i + 1) * k, (i - 1) * k : i * k] = below[:, i - 1]
    dense = dense @ dense.mT
    blocks = dense.reshape(batch, n, k, n, k).movedim(3, 2)  # (batch, n, n, k, k)
    here = torch.arange(n)
    return blocks[:, here, here], blocks[:, here[:-1], here[1:]], dense


@pytest.mark.parametrize(("n", "k"), [(1, 2), (2, 1), (7, 3), (16, 4)])
def test_solve_inverts_the_dense_matrix(n, k):
    diagonal, above, dense = system(n=n, k=k)
    right = torch.randn(5, n, k, dtype=torch.float64)
    found = solve(factor(diagonal, above, shift=0.0), right)
    assert torch.allclose((dense @ found.reshape(5, -1, 1)).reshape(5, n, k), right, atol=1e-9)


def test_a_matrix_that_is_not_definite_is_shifted_alone():
    diagonal, above, _ = system()
    diagonal[2] -= 50 * torch.eye(3)
    shifts = factor(diagonal, above, shift=1e-9).shift
    assert shifts[2] > 1e-4
    assert (shifts[[0, 1, 3, 4]] == 1e-9).all()


def test_neighbors_in_the_batch_do_not_change_a_solution():
    diagonal, above, _ = system()
    right = torch.randn(5, 7, 3, dtype=torch.float64)
    together = solve(factor(diagonal, above, shift=0.0), right)
    alone = solve(factor(diagonal[1:2], above[1:2], shift=0.0), right[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-13)


def test_a_singular_matrix_has_a_bounded_solution_where_the_right_side_vanishes():
    diagonal = torch.diag_embed(torch.tensor([[[1.0, 0.0]] * 4], dtype=torch.float64))
    right = torch.tensor([[[1.0, 0.0]] * 4], dtype=torch.float64)
    found = solve(factor(diagonal, torch.zeros(1, 3, 2, 2, dtype=torch.float64), shift=1e-9), right)
    assert torch.allclose(found, right, atol=1e-8)
