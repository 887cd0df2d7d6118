r"""A body around a take's joints: one rigid tapered limb for every bone.

Bones. A bone joins a joint to its parent; bones that are short against the body (and zero-length ones, which file
formats are full of) are merged into their parent's joint. Where only positions are known, free ends of less than 5.5 %
of the body (fingers, toes) are stiff: they go with the limb that they end, since capture turns them over at random.

Thickness. The radius of a bone grows with what hangs on it: r = a H (ℓ / H)^0.65, where ℓ is the length of the bone
and of all bones below it and H the body's size. With a = 0.085 a person's trunk, thigh, shin, forearm and hand come out
about right, and so do a dog's; nothing about the species is assumed. Trunk bones (those below which the body still
branches into two major limbs) have a = 0.07 and are flattened front to back. The head is a ball: the last bone named
so, else the highest free end at rest.

Frames. A bone has the exact direction d(t) to its child; its twist about d follows the parent joint:

    F(t) = A(G(t) G(s)ᵀ d(s) → d(t)) G(t) G(s)ᵀ                                                         (1)

A(a → b) is the least rotation that takes a to b, s the frame of the rest pose. G is the joint's orientation where the
take has it; else, where a joint's neighbours span more than a line, the rotation that fits their directions best
(Kabsch 1976: trunk, shoulders, hips); else it is carried along in time in the axes of the joint above (parallel
transport, Bishop 1975), so that it neither spins nor jumps when a limb passes the pose opposite to its rest.
Shape letters:  T frames   J joints   B bones   V vertices   F triangles.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from diffusion4d.data.skeleton import Take, topological
from diffusion4d.scenes import shapes

Array = np.ndarray

MOST_TRIANGLES = 1200


@dataclass(frozen=True)
class JointedBody:
    """A rest pose and the limbs around it. `joints` are those of the take's joints that carry a limb; `stiff` ones
    have no motion of their own.
    """

    joints: Int[Array, "J"]
    stiff: Bool[Array, "J"]
    pose: Take
    rest: Float[Array, "V 3"]
    faces: Int[Array, "F 3"]
    part: Int[Array, "V"]


@dataclass(frozen=True)
class Build:
    """How a body is fleshed out: girth of everything, of trunk and limbs, of single bones (log scale), flatness."""

    girth: float = 1.0
    trunk: float = 1.0
    limbs: float = 1.0
    head: float = 1.0
    uneven: float = 0.0
    flatness: float = 0.8


def random_build(rng: np.random.Generator) -> Build:
    """Thin to stout, with long or round heads."""
    girth, trunk, limbs, head = np.exp(rng.normal(size=4) * [0.14, 0.1, 0.1, 0.08])
    return Build(
        float(girth), float(trunk), float(limbs), float(head), 0.08, rng.uniform(0.65, 0.95)
    )


def kept_joints(take: Take, share: float = 0.02) -> Int[Array, "J"]:
    """The joints at the ends of bones of at least `share` of the body, parents first."""
    length_J, size = bone_lengths(take), body_size(take)
    order = topological(take.parents)
    return np.array(order[:1] + [joint for joint in order[1:] if length_J[joint] >= share * size])


def selected(take: Take, joints: Int[Array, "J"]) -> Take:
    """The take with these joints only (parents first); a joint hangs on the nearest one above it that is kept."""
    place = {int(joint): number for number, joint in enumerate(joints)}
    parents = []
    for joint in joints:
        above = int(take.parents[joint])
        while above >= 0 and above not in place:
            above = int(take.parents[above])
        parents.append(place.get(above, -1))
    names = tuple(take.names[joint] for joint in joints) if take.names else ()
    rotations = None if take.rotations is None else take.rotations[:, joints]
    return Take(take.positions[:, joints], np.array(parents), take.fps, names, rotations)


def bone_lengths(take: Take) -> Float[Array, "J"]:
    """The median distance of every joint to its parent; 0 for the root."""
    parents = np.where(take.parents < 0, np.arange(len(take.parents)), take.parents)
    reach_TJ3 = take.positions - take.positions[:, parents]
    return np.median(np.linalg.norm(reach_TJ3, axis=-1), 0)


def body_size(take: Take) -> float:
    """The median over time of the largest extent of the joints."""
    return float(np.median(np.ptp(take.positions, axis=1).max(-1)))


def rest_frame(take: Take) -> int:
    """The frame whose pose, up to where it stands, is nearest the median pose."""
    centred_TJ3 = take.positions - take.positions.mean(1, keepdims=True)
    return int(np.abs(centred_TJ3 - np.median(centred_TJ3, 0)).sum((1, 2)).argmin())


def body(take: Take, build: Build, rng: np.random.Generator) -> JointedBody:
    """Limbs around the bones of the take's most usual pose."""
    joints = kept_joints(take)
    take = selected(take, joints)
    s = rest_frame(take)
    pose_J3, parents, length_J = take.positions[s], take.parents, bone_lengths(take)
    radius_J = radii(take, build) * np.exp(build.uneven * rng.normal(size=len(parents)))
    trunk_J, head = _trunk(take), _head(take, s)
    num_bones = len(parents) - 1
    # A limb of n sides has 10 n triangles (see `shapes.capsule`).
    sides = MOST_TRIANGLES // (10 * num_bones)
    if sides < 3:
        most = MOST_TRIANGLES // 30
        raise ValueError(f"need at most {most} bones longer than 2 % of the body, got {num_bones}")
    meshes = []
    for joint in range(1, len(parents)):
        way_3 = pose_J3[joint] - pose_J3[parents[joint]]
        start, length = radius_J[joint], float(length_J[joint])
        below = radius_J[parents == joint].max(initial=0.0)
        end = float(np.clip(below, 0.55 * start, 1.1 * start))
        profile, flat = np.array([start, 0.53 * (start + end), end]), 1.0
        if trunk_J[joint]:
            flat = build.flatness
        if joint == head:
            # A ball, thicker than the bone is long.
            radius = 0.058 * body_size(take) * build.head
            profile, length = np.array([0.75, 1.0, 0.8]) * radius, max(length, 1.1 * radius)
        mesh = shapes.capsule(np.array([0.0, 0.0, length]), profile, flat, min(sides, 8))
        axes_33 = _axes(pose_J3, parents, joint, way_3)
        meshes.append(shapes.Mesh(mesh.vertices @ axes_33.T + pose_J3[parents[joint]], mesh.faces))
    whole = shapes.joined(*meshes)
    part = np.repeat(np.arange(num_bones), [len(mesh.vertices) for mesh in meshes])
    stiff_J = _reach(take) < 0.055 * body_size(take)
    if take.rotations is not None:
        stiff_J[:] = False
    return JointedBody(joints, stiff_J, take.between(s, s + 1), whole.vertices, whole.faces, part)


def moved(body: JointedBody, take: Take) -> Float[Array, "T V 3"]:
    """The body's vertices during a take of the same skeleton."""
    take = selected(take, body.joints)
    if (take.parents != body.pose.parents).any():
        raise ValueError("need a take of the body's own skeleton, got other parents")
    parents = take.parents[1:]
    # The rest pose goes before the take, so that frames are carried on from it.
    rotations = None
    if take.rotations is not None and body.pose.rotations is not None:
        rotations = np.concatenate([body.pose.rotations, take.rotations])
    positions = np.concatenate([body.pose.positions, take.positions])
    whole = replace(take, positions=positions, rotations=rotations)
    frames_TB33 = bone_frames(whole, 0, body.stiff)[1:, 1:]
    joints_TJ3 = take.positions.copy()
    for joint in np.flatnonzero(body.stiff):
        parent = int(take.parents[joint])
        way_3 = body.pose.positions[0, joint] - body.pose.positions[0, parent]
        joints_TJ3[:, joint] = joints_TJ3[:, parent] + frames_TB33[:, joint - 1] @ way_3
    local_V3 = body.rest - body.pose.positions[0, parents][body.part]
    vertices_TV3 = np.empty((len(take), len(local_V3), 3))
    for bone, parent in enumerate(parents):
        own = body.part == bone
        turned_TV3 = np.einsum("tij,vj->tvi", frames_TB33[:, bone], local_V3[own])
        vertices_TV3[:, own] = joints_TJ3[:, [parent]] + turned_TV3
    return vertices_TV3


def _axes(
    pose_J3: Float[Array, "J 3"], parents: Int[Array, "J"], joint: int, way_3: Float[Array, "3"]
) -> Float[Array, "3 3"]:
    """A limb's axes at rest as columns: forward (flattened), sideways (where neighbours spread most), along."""
    along_3 = way_3 / max(float(np.linalg.norm(way_3)), 1e-9)
    parent = int(parents[joint])
    near = np.isin(parents, np.flatnonzero((parents == joint) | (parents == parent)))
    near |= (parents == joint) | (parents == parent)
    spread_N3 = pose_J3[near] - pose_J3[near].mean(0)
    spread_N3 = spread_N3 - (spread_N3 @ along_3)[:, None] * along_3
    sideways_3 = np.linalg.svd(spread_N3)[2][0]
    sideways_3 = sideways_3 - (sideways_3 @ along_3) * along_3
    if np.linalg.norm(spread_N3) < 1e-6 or np.linalg.norm(sideways_3) < 1e-3:
        sideways_3 = np.cross(along_3, np.eye(3)[np.abs(along_3).argmin()])
    sideways_3 = sideways_3 / np.linalg.norm(sideways_3)
    return np.stack([np.cross(sideways_3, along_3), sideways_3, along_3], -1)


def radii(take: Take, build: Build) -> Float[Array, "J"]:
    """For every joint the radius of the bone that ends there: a H (ℓ / H)^0.65."""
    length_J, size = bone_lengths(take), body_size(take)
    carried_J = length_J.copy()
    for joint in reversed(topological(take.parents)[1:]):
        carried_J[take.parents[joint]] += carried_J[joint]
    radius_J = 0.085 * size * (carried_J / size) ** 0.65
    # A hip or a collar bone carries a whole limb, but is short: it must not swell beyond its own size.
    radius_J = np.minimum(radius_J, np.maximum(0.75 * length_J, 0.03 * size))
    trunk_J = _trunk(take)
    trunk = 0.07 * size * (carried_J[trunk_J] / size) ** 0.65
    radius_J[trunk_J] = np.minimum(trunk, 0.1 * size)
    return radius_J * build.girth * np.where(trunk_J, build.trunk, build.limbs)


def _trunk(take: Take) -> Array:
    """Bones below which the body still branches into two major limbs."""
    reach_J, size = _reach(take), body_size(take)
    major_J = np.zeros(len(reach_J), dtype=int)
    for joint in reversed(topological(take.parents)[1:]):
        # Fingers branch too, but a hand is no trunk.
        major_J[take.parents[joint]] += (
            max(1, major_J[joint]) if reach_J[joint] > 0.18 * size else 0
        )
    return major_J >= 2


def _reach(take: Take) -> Float[Array, "J"]:
    """How far it is along bones from a joint's parent to the farthest end below the joint."""
    length_J = bone_lengths(take)
    reach_J = length_J.copy()
    # Children come before their parents here, so a joint's reach is final when it is handed up.
    for joint in reversed(topological(take.parents)[1:]):
        parent = int(take.parents[joint])
        reach_J[parent] = max(reach_J[parent], length_J[parent] + reach_J[joint])
    return reach_J


def _head(take: Take, s: int) -> int:
    """The bone that carries the head: the last one named so, else the highest free end at rest."""
    ends = [joint for joint in range(1, len(take.parents)) if not (take.parents == joint).any()]
    named = [j for j, name in enumerate(take.names) if name.lower().startswith(("head", "face"))]
    if named and take.parents[named[-1]] >= 0:
        return named[-1]
    return max(ends, key=lambda joint: take.positions[s, joint, 2])


def bone_frames(
    take: Take, s: int, stiff: Bool[Array, "J"] | None = None
) -> Float[Array, "T J 3 3"]:
    """Eq. (1): for every joint the rotation, since frame `s`, of the bone that ends there (the root's is its own)."""
    frames = len(take)
    loose_J = np.ones(len(take.parents), dtype=bool) if stiff is None else ~stiff
    turn_TJ33 = np.empty((frames, len(take.parents), 3, 3))
    bones_TJ33 = np.empty_like(turn_TJ33)
    for joint in topological(take.parents):
        parent = int(take.parents[joint])
        above_T33 = np.broadcast_to(np.eye(3), (frames, 3, 3))
        if parent >= 0:
            above_T33 = turn_TJ33[:, parent]
            way_T3 = take.positions[:, joint] - take.positions[:, parent]
            carried_T3 = np.einsum("tij,j->ti", above_T33, way_T3[s])
            swing_T33 = least_rotation(carried_T3, way_T3) if loose_J[joint] else np.eye(3)
            bones_TJ33[:, joint] = swing_T33 @ above_T33
        if take.rotations is not None:
            turn_TJ33[:, joint] = take.rotations[:, joint] @ take.rotations[s, joint].T
        else:
            turn_TJ33[:, joint] = _fitted(take, joint, s, above_T33, loose_J)
        if parent < 0:
            bones_TJ33[:, joint] = turn_TJ33[:, joint]
    return bones_TJ33


def _fitted(
    take: Take, joint: int, s: int, above_T33: Array, loose_J: Array
) -> Float[Array, "T 3 3"]:
    """A joint's rotation since frame s from the directions of its neighbours, or carried along in time."""
    children = np.flatnonzero((take.parents == joint) & loose_J)
    parent = int(take.parents[joint])
    neighbours = children.tolist() + ([parent] if parent >= 0 else [])
    way_TN3 = take.positions[:, neighbours] - take.positions[:, [joint]]
    way_TN3 = way_TN3 / np.maximum(np.linalg.norm(way_TN3, axis=-1, keepdims=True), 1e-9)
    if len(children) >= 2:
        spread = np.linalg.svd(way_TN3, compute_uv=False)[:, 1]
        if spread.min() > 0.3:
            return _kabsch(way_TN3[s], way_TN3)
    if len(children) == 0:
        return above_T33
    # In the axes of the joint above, from frame s outwards, each step turns the least.
    mean_T3 = way_TN3[:, : len(children)].mean(1)
    local_T3 = np.einsum("tji,tj->ti", above_T33, mean_T3)
    local_T33 = np.empty((len(take), 3, 3))
    local_T33[s] = np.eye(3)
    forward_T33 = least_rotation(local_T3[:-1], local_T3[1:])
    for t in range(s + 1, len(take)):
        local_T33[t] = forward_T33[t - 1] @ local_T33[t - 1]
    for t in range(s - 1, -1, -1):
        local_T33[t] = forward_T33[t].T @ local_T33[t + 1]
    return above_T33 @ local_T33


def _kabsch(rest_N3: Float[Array, "N 3"], now_TN3: Float[Array, "T N 3"]) -> Float[Array, "T 3 3"]:
    """The rotations that take `rest_N3` nearest `now_TN3` in least squares."""
    left, _, right = np.linalg.svd(np.einsum("tni,nj->tij", now_TN3, rest_N3))
    sign_T = np.sign(np.linalg.det(left @ right))
    left[..., -1] *= sign_T[:, None]
    return left @ right


def least_rotation(a_T3: Float[Array, "T 3"], b_T3: Float[Array, "T 3"]) -> Float[Array, "T 3 3"]:
    """The least rotation that takes direction a to direction b: R = I + K + K² / (1 + a·b), K = [a × b]."""
    a_T3 = a_T3 / np.maximum(np.linalg.norm(a_T3, axis=-1, keepdims=True), 1e-12)
    b_T3 = b_T3 / np.maximum(np.linalg.norm(b_T3, axis=-1, keepdims=True), 1e-12)
    cosine_T = (a_T3 * b_T3).sum(-1)
    x, y, z = np.cross(a_T3, b_T3).T
    zero = np.zeros_like(x)
    k_T33 = np.moveaxis(np.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]), -1, 0)
    turn_T33 = np.eye(3) + k_T33 + k_T33 @ k_T33 / np.maximum(1 + cosine_T, 1e-9)[:, None, None]
    opposite_T = cosine_T < -1 + 1e-9
    if opposite_T.any():
        # Half a turn about any axis across a.
        axis = np.cross(a_T3[opposite_T], np.eye(3)[np.abs(a_T3[opposite_T]).argmin(-1)])
        axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
        turn_T33[opposite_T] = 2 * axis[:, :, None] * axis[:, None] - np.eye(3)
    return turn_T33
