"""Shapes in annotations: a leading batch ``...`` everywhere, the coordinate last. Nothing is checked at run time."""

from jaxtyping import Float
from torch import Tensor

Points = Float[Tensor, "*batch d"]  # z: latent points
Tangents = Float[Tensor, "*batch d"]  # u, v: tangent vectors at latent points
Features = Float[Tensor, "*batch D"]  # x = f(z)
Nodes = Float[Tensor, "*batch T+1 d"]  # a curve by its T + 1 nodes
Scalars = Float[Tensor, "*batch"]
Matrices = Float[Tensor, "*batch d d"]  # G: symmetric, positive semi-definite
Jacobians = Float[Tensor, "*batch D d"]
