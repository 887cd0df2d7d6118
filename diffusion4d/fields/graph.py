r"""How far nodes are from each other, and from a surface, along the surface and not through the air.

An arm that rests on the hip is near to it in space and far from it along the body; weights that go by space would let
one drag the other. Distances are shortest paths over edges (Dijkstra 1959, by scipy):

    with a mesh        over its edges, of vertices that share a place welded together (glTF cuts surfaces at seams)
    without a mesh     over the k nearest neighbours of every node, less those edges that do not hold: whose length
                       changes by more than `STRETCH` over the motion, beyond what the median edge does

A path over edges is longer than the way along a smooth surface, by a tenth or so; what counts here is which node is
nearer. What no path reaches is as far as `APART` times the way through the air.

Shape letters:  N nodes   V vertices   F faces   B hypotheses and instants
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from diffusion4d.fields.weld import weld

NEIGHBOURS = 8
"""Edges that a node looks for."""
STRETCH = 0.5
"""Relative change of length above the median edge's, from which an edge does not hold."""
APART = 4.0
"""Of the Euclidean distance, where there is no path."""


def node_distances(
    rest: Float[np.ndarray, "N 3"],
    positions: Float[np.ndarray, "B N 3"] | None = None,
    neighbours: int = NEIGHBOURS,
) -> Float[np.ndarray, "N N"]:
    """Shortest paths over the node graph.

    Args:
        rest: nodes in the anchor frame.
        positions: the same nodes at other times; without them every edge holds.
    """
    straight = cdist(rest, rest)
    if len(rest) == 1:
        return straight
    count = min(neighbours, len(rest) - 1)
    _, near = KDTree(rest).query(rest, count + 1)
    first = np.repeat(np.arange(len(rest)), count)
    second = np.asarray(near)[:, 1:].ravel()
    if positions is not None:
        length = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
        change = np.abs(length / np.maximum(straight[first, second], 1e-12) - 1).max(0)
        held = change <= np.median(change) + STRETCH
        first, second = first[held], second[held]
    return _paths(first, second, straight[first, second], straight)


def surface_distances(
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    nodes: Float[np.ndarray, "N 3"],
) -> Float[np.ndarray, "V N"]:
    """From every vertex to every node along the edges of a mesh; nodes hang on their nearest vertex."""
    points, welded = weld(vertices)
    corner = welded[faces]
    edges = np.concatenate([corner[:, [0, 1]], corner[:, [1, 2]], corner[:, [2, 0]]])
    edges = np.asarray(np.unique(np.sort(edges, 1), axis=0))
    edges = edges[edges[:, 0] != edges[:, 1]]
    length = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=-1)
    graph = csr_matrix((np.maximum(length, 1e-12), edges.T), (len(points), len(points)))
    away, start = KDTree(points).query(nodes)
    found = dijkstra(graph, directed=False, indices=start) + away[:, None]
    straight = cdist(nodes, points)
    # Where the mesh is coarse beside the spacing of nodes, a path of edges may cut no corner but turns many.
    found = np.where(np.isfinite(found), np.maximum(found, straight), APART * straight)
    return found.T[welded].astype(np.float32)


def _paths(
    first: np.ndarray, second: np.ndarray, length: np.ndarray, straight: np.ndarray
) -> np.ndarray:
    graph = csr_matrix((np.maximum(length, 1e-12), (first, second)), straight.shape)
    found = dijkstra(graph, directed=False)
    return np.where(np.isfinite(found), found, APART * straight)
