r"""A captured take: where the joints of one skeleton are at every instant.

Forward kinematics: joint j with parent π(j), local rotation R_j and offset o_j (in the parent's axes) has

    G_j = G_π(j) R_j        p_j = p_π(j) + G_π(j) o_j                                                  (1)

Markers come without a tree. Two points of one rigid piece keep their distance, so the tree is the minimum
spanning tree of the standard deviation over time of every pair's distance (as Yan & Pollefeys 2008 link the rigid
pieces they found), with a small share of the mean distance to choose among points of one piece.
Shape letters:  T frames   J joints.  World axes: z up, right-handed, metres.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray

# x stays, the old up (y) becomes z, and z turns to −y: a rotation of 90° about x.
Y_UP_TO_Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


@dataclass(frozen=True)
class Take:
    """Joint positions (m, z up), each joint's parent (−1: the root), and the joints' orientations if known."""

    positions: Float[Array, "T J 3"]
    parents: Int[Array, "J"]
    fps: float
    names: tuple[str, ...] = ()
    rotations: Float[Array, "T J 3 3"] | None = None

    def __post_init__(self) -> None:
        frames, joints = self.positions.shape[:2]
        if frames == 0 or joints < 2:
            raise ValueError(
                f"need at least 1 frame and 2 joints, got {frames} frames, {joints} joints"
            )
        if not self.fps > 0 or not np.isfinite(self.fps):
            raise ValueError(f"need frames per second > 0, got {self.fps}")
        bad = ~np.isfinite(self.positions).all((1, 2))
        if bad.any():
            raise ValueError(
                f"need finite joint positions, got NaN or infinity in frame {int(bad.argmax())}"
            )
        if self.names and len(self.names) != joints:
            raise ValueError(f"need one name a joint, got {len(self.names)} for {joints} joints")
        topological(self.parents)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def seconds(self) -> float:
        return len(self) / self.fps

    def between(self, start: int, stop: int) -> "Take":
        """Frames start ≤ t < stop."""
        rotations = None if self.rotations is None else self.rotations[start:stop]
        return replace(self, positions=self.positions[start:stop], rotations=rotations)


def topological(parents: Int[Array, "J"]) -> list[int]:
    """The joints in an order where parents come first; ValueError unless they are one tree."""
    roots = [j for j, parent in enumerate(parents) if parent < 0]
    if len(roots) != 1:
        raise ValueError(f"need exactly one joint without a parent, got {len(roots)}")
    if parents.max() >= len(parents):
        raise ValueError(f"need parents below the {len(parents)} joints, got joint {parents.max()}")
    children: list[list[int]] = [[] for _ in parents]
    for joint, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(joint)
    order = roots
    for joint in order:
        order.extend(children[joint])
    if len(order) != len(parents):
        missing = sorted(set(range(len(parents))) - set(order))
        raise ValueError(f"need a tree, got a cycle among joints {missing}")
    return order


def forward_kinematics(
    parents: Sequence[int],
    offsets_TJ3: Float[Array, "T J 3"],
    local_TJ33: Float[Array, "T J 3 3"],
) -> tuple[Float[Array, "T J 3"], Float[Array, "T J 3 3"]]:
    """Eq. (1): positions and orientations; parents come before their children, a root's offset is its position."""
    positions_TJ3, global_TJ33 = np.empty_like(offsets_TJ3), np.empty_like(local_TJ33)
    for joint, parent in enumerate(parents):
        if parent < 0:
            positions_TJ3[:, joint], global_TJ33[:, joint] = (
                offsets_TJ3[:, joint],
                local_TJ33[:, joint],
            )
            continue
        turn_T33 = global_TJ33[:, parent]
        reach_T3 = np.einsum("tij,tj->ti", turn_T33, offsets_TJ3[:, joint])
        positions_TJ3[:, joint] = positions_TJ3[:, parent] + reach_T3
        global_TJ33[:, joint] = turn_T33 @ local_TJ33[:, joint]
    return positions_TJ3, global_TJ33


def z_up(take: Take, up: str) -> Take:
    """The take with z up; `up` says which of its own axes points up."""
    if up == "z":
        return take
    if up != "y":
        raise ValueError(f"need an up axis 'y' or 'z', got {up!r}")
    rotations = None if take.rotations is None else Y_UP_TO_Z_UP @ take.rotations
    return replace(take, positions=take.positions @ Y_UP_TO_Z_UP.T, rotations=rotations)


def spanning_parents(positions_TJ3: Float[Array, "T J 3"]) -> Int[Array, "J"]:
    """Parents of markers that came without: the spanning tree of least change, rooted at its middle joint."""
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree, shortest_path

    distance_TJJ = np.linalg.norm(positions_TJ3[:, :, None] - positions_TJ3[:, None], axis=-1)
    # Two coinciding markers would read as "no edge" without the last term.
    cost_JJ = distance_TJJ.std(0) + 0.02 * distance_TJJ.mean(0) + 1e-9
    np.fill_diagonal(cost_JJ, 0)
    tree = minimum_spanning_tree(cost_JJ)
    links = tree.copy()
    links.data[:] = 1
    hops_JJ = shortest_path(links, directed=False)
    root = int(hops_JJ.sum(0).argmin())
    _, parents = breadth_first_order(tree, root, directed=False)
    return np.where(parents < 0, -1, parents).astype(np.int64)


def resampled(take: Take, fps: float) -> Take:
    """At most `fps` frames a second: every n-th frame where the rates divide, else linear between frames."""
    ratio = take.fps / fps
    if ratio <= 1.005:
        return take
    stride = round(ratio)
    if abs(ratio - stride) < 0.01 * stride:
        rotations = None if take.rotations is None else take.rotations[::stride]
        return replace(
            take,
            positions=take.positions[::stride],
            rotations=rotations,
            fps=take.fps / stride,
        )
    time_S = np.arange(int((len(take) - 1) / ratio) + 1) * ratio
    low_S = np.minimum(time_S.astype(int), max(len(take) - 2, 0))
    share_S = time_S - low_S

    def between(values: Array) -> Array:
        share = share_S.reshape(-1, *[1] * (values.ndim - 1))
        return (1 - share) * values[low_S] + share * values[np.minimum(low_S + 1, len(take) - 1)]

    rotations = None
    if take.rotations is not None:
        # The nearest rotation to a mean of two (Moakher 2002) comes from its singular vectors.
        left, _, right = np.linalg.svd(between(take.rotations))
        rotations = left @ right
    return replace(take, positions=between(take.positions), rotations=rotations, fps=fps)


def steady(take: Take, limit: float = 16.0, shortest: float = 1.0) -> Iterator[Take]:
    """The stretches of at least `shortest` seconds in which no joint is faster than `limit` (m/s).

    Nobody's hand moves at 16 m/s in these takes; a marker that was mistaken for another does.
    """
    speed_T = np.linalg.norm(np.diff(take.positions, axis=0), axis=-1).max(-1) * take.fps
    breaks = [0, *(np.flatnonzero(speed_T > limit) + 1).tolist(), len(take)]
    for start, stop in itertools.pairwise(breaks):
        if stop - start >= shortest * take.fps:
            yield take.between(start, stop)


def pieces(take: Take, longest: float, most: int) -> list[Take]:
    """At most `most` pieces of at most `longest` seconds, spread evenly over the take; none overlap."""
    size = max(2, int(longest * take.fps))
    count = min(most, -(-len(take) // size))
    size = min(size, len(take) // count)
    starts = np.linspace(0, len(take) - size, count).astype(int)
    return [take.between(int(start), int(start) + size) for start in starts]
