"""A variance that grows away from the data: radial basis functions for the precision of a decoder."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.types import Features, Points

FLOOR = 0.1  # smallest spread of a cluster, as a share of the median spread


class RBFPrecision(nn.Module):
    r"""Standard deviation of a decoder from a precision that dies off away from the centers.

    .. math::
        \sigma(z) = \beta(z)^{-1/2}, \qquad \beta(z) = W v(z) + \zeta, \qquad v_k(z) = e^{-\lambda_k |z - c_k|^2},
        \qquad W \ge 0,\ \zeta > 0

    Far from every center :math:`\sigma` saturates at :math:`\zeta^{-1/2}` and the metric falls back, so the wall around
    the data is a ring; :math:`\zeta \le 10^{-8}` keeps its outer rim outside of the window that is worked in.

    Args:
        centers: c (K, d).
        bandwidths: :math:`\lambda` (K,), in units of inverse squared latent length, all positive.
        data_dim: D, number of outputs.
        zeta: Smallest precision.

    Attributes:
        weight: W (D, K), the only parameter, initially 1; :meth:`project` keeps it non-negative. Float64, as the rest:
            in float32 :math:`v` vanishes close to the data.

    Raises:
        ValueError: Shapes do not fit, or a bandwidth or ``zeta`` is not positive and finite.

    Reference:
        Arvanitidis, Hansen, Hauberg (2018), section 4. :cite:`oddity`

    Example:
        >>> rbf = RBFPrecision(torch.zeros(1, 2), torch.ones(1), 3)
        >>> near, far = rbf(torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64))[:, 0]
        >>> bool(far > 80 * near)
        True
    """

    centers: Tensor
    bandwidths: Tensor
    zeta: Tensor

    def __init__(
        self, centers: Float[Tensor, "K d"], bandwidths: Float[Tensor, " K"], data_dim: int, *, zeta: float = 1e-10
    ) -> None:
        super().__init__()
        if centers.ndim != 2 or bandwidths.shape != centers.shape[:1]:
            raise ValueError(
                f"`centers` has shape {tuple(centers.shape)} and `bandwidths` {tuple(bandwidths.shape)}: "
                "wanted (K, d) and (K,)"
            )
        positive = torch.cat([bandwidths.double(), torch.tensor([zeta], dtype=torch.float64, device=bandwidths.device)])
        if not bool((positive.isfinite() & (positive > 0)).all()):
            raise ValueError("`bandwidths` and `zeta` must be positive and finite; see `bandwidths` for the rule")
        self.register_buffer("centers", centers.double())
        self.register_buffer("bandwidths", bandwidths.double())
        self.register_buffer("zeta", torch.tensor(zeta, dtype=torch.float64, device=centers.device))
        self.weight = nn.Parameter(torch.ones(data_dim, len(centers), dtype=torch.float64, device=centers.device))

    def kernels(self, z: Points) -> Float[Tensor, "*batch K"]:
        """v(z), between 0 and 1: (..., d) -> (..., K)."""
        # |z - c|^2 expanded into one product, around the middle of the centers so that nothing cancels. Rounding may
        # leave an exponent a little above 0; a clamp there would cost the second derivative.
        middle = self.centers.mean(0)
        c = self.centers - middle
        z = z - middle
        linear = F.linear(z, 2 * self.bandwidths[:, None] * c, -self.bandwidths * c.square().sum(-1))
        return (linear - z.square().sum(-1, keepdim=True) * self.bandwidths).exp()

    def precision(self, z: Points) -> Features:
        r""":math:`\beta(z) = 1 / \sigma(z)^2`: (..., d) -> (..., D)."""
        return F.linear(self.kernels(z), self.weight, self.zeta.expand(len(self.weight)))

    def forward(self, z: Points) -> Features:
        r""":math:`\sigma(z)`, in units of the data: (..., d) -> (..., D)."""
        return self.precision(z).rsqrt_()  # in place: a fresh (n, D) costs more than the root

    def loss(self, z: Points, residual: Features) -> Tensor:
        r"""Gaussian negative log likelihood of residuals :math:`x - \mu(z)`, constants dropped; mean over samples.

        .. math:: \tfrac12 \sum_j \big(\beta_j(z)\, (x_j - \mu_j(z))^2 - \log \beta_j(z)\big)
        """
        precision = self.precision(z)
        return 0.5 * (precision * residual.square() - precision.log()).sum(-1).mean()

    @torch.no_grad()
    def in_units_of(self, scale: Tensor) -> None:
        """Make the standard deviation of x / scale that of x."""
        self.weight /= scale.square()
        self.zeta /= scale.square()

    @torch.no_grad()
    def place(self, codes: Points, *, a: float = 2.0, random_state: int = 0) -> None:
        r"""Move the centers to codes, by k-means, with the :func:`bandwidths` that the spread of its clusters gives.

        Args:
            codes: z (n, d), those of the data, at least K different ones.
            a: Scale of the bandwidths; larger is smoother.
            random_state: Seed of the k-means++ start.

        Raises:
            ValueError: There are fewer different codes than centers, or ``a`` is not positive.

        Example:
            >>> rbf = RBFPrecision(torch.zeros(2, 1), torch.ones(2), 3)
            >>> rbf.place(torch.tensor([[0.0], [1.0], [10.0], [11.0]]))
            >>> sorted(rbf.centers.flatten().tolist())
            [0.5, 10.5]
        """
        centers, members = kmeans(codes, len(self.centers), random_state=random_state)
        self.bandwidths.copy_(bandwidths(codes, members, centers, a=a))
        self.centers.copy_(centers)

    def project(self) -> None:
        """Set negative weights to zero: the projection after each step of a projected gradient."""
        with torch.no_grad():
            self.weight.clamp_(min=0)


def bandwidths(
    codes: Points, members: Int[Tensor, " n"], centers: Float[Tensor, "K d"], *, a: float = 2.0
) -> Float[Tensor, " K"]:
    r"""Bandwidth of each radial basis function from the spread of its cluster.

    .. math:: \lambda_k = \tfrac12 (a\, s_k)^{-2}, \qquad s_k = \frac1{|C_k|} \sum_{z \in C_k} |z - c_k|

    The mean is of the distance, not of its square. Clusters of one code have no spread: :math:`s_k` is at least 0.1 of
    the median over the clusters that have one.

    Args:
        codes: z (n, d).
        members: Cluster of each code (n,), from 0 to K - 1.
        centers: c (K, d).
        a: Scale of the spread; larger is smoother.

    Returns:
        :math:`\lambda` (K,), in units of inverse squared latent length.

    Raises:
        ValueError: ``a`` is not positive, or no cluster has two different codes.

    Reference:
        Arvanitidis, Hansen, Hauberg (2018), section 4. :cite:`oddity`
    """
    if not a > 0:
        raise ValueError(f"`a` is {a}: wanted a positive scale, such as 2")
    distances = (codes - centers[members]).norm(dim=-1)
    counts = torch.bincount(members, minlength=len(centers)).clamp(min=1)
    spread = (
        torch.zeros(len(centers), dtype=distances.dtype, device=codes.device).index_add(0, members, distances) / counts
    )
    if not bool((spread > 0).any()):
        raise ValueError(f"none of the {len(centers)} clusters has two different codes: use fewer centers")
    spread = spread.clamp(min=FLOOR * float(spread[spread > 0].median()))
    return 0.5 / (a * spread).square()


def kmeans(codes: Points, n_centers: int, *, random_state: int = 0) -> tuple[Float[Tensor, "K d"], Int[Tensor, " n"]]:
    """Centers of the codes by k-means, and the cluster of each code.

    Args:
        codes: z (n, d).
        n_centers: K, at most the number of different codes.
        random_state: Seed of the k-means++ start.

    Returns:
        Centers (K, d) and members (n,), from 0 to K - 1.

    Raises:
        ValueError: There are fewer different codes than centers.
    """
    from sklearn.cluster import KMeans

    n_different = len(torch.unique(codes, dim=0))
    if not 1 <= n_centers <= n_different:
        raise ValueError(
            f"`n_centers` is {n_centers}, but there are {n_different} different codes: use 1 to {n_different}"
        )
    fit = KMeans(n_centers, n_init=4, random_state=random_state)  # pyright: ignore[reportArgumentType]
    fit = fit.fit(codes.double().cpu().numpy())
    return (
        torch.from_numpy(fit.cluster_centers_).to(codes),
        torch.from_numpy(fit.labels_).to(device=codes.device, dtype=torch.int64),
    )
