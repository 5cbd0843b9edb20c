"""Graphs over latent points whose edges have decoded lengths: shortest paths are near geodesics, wherever walls are."""

from pullback.graphs.build import grid_graph, knn_graph
from pullback.graphs.graph import Graph
from pullback.graphs.landmarks import Landmarks

__all__ = ["Graph", "Landmarks", "grid_graph", "knn_graph"]
