r"""The articulated family: skeletons in motion.

Forward kinematics: limb j with parent π(j), local rotation R_j(u), rest offset o_j has
G_j = G_π(j) R_j and p_j = p_π(j) + G_π(j) o_j; its vertices are p_j + G_j x, so every limb stays exactly isometric.
Gaits are phase-shifted sinusoids of the joint angles; gestures are smooth signals; all poses carry a little of both.
Angles follow the right-hand rule about x (roll, lifts a left limb), y (pitch, swings a hanging limb back), z (yaw).
Shape letters:  T frames   J limbs   V vertices.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from diffusion4d.scenes import motion, shapes, skeletons
from diffusion4d.scenes.bodies import Body, lifted
from diffusion4d.scenes.skeletons import Skeleton

Array = np.ndarray

# A performance fills in the joint angles [T, J, 3] (rotation vectors) and tells the root's pose and
# whether the body stands on the floor.
Performance = Callable[
    [np.random.Generator, Array, Skeleton, float, Array], tuple[Array, Array, bool]
]


def articulated(rng: np.random.Generator, u: Float[Array, "T"], num_vertices: int) -> Body:
    """A person, animal, hand, arm, snake or unknown creature that walks, gestures, reaches, flies, crawls or idles."""
    kind = rng.choice(list(_KINDS), p=[0.38, 0.24, 0.1, 0.1, 0.06, 0.06, 0.06])
    build, perform = _KINDS[kind]
    skeleton = build(rng)
    energy = motion.log_uniform(rng, 0.15, 1.3)
    angles_TJ3 = np.zeros((len(u), len(skeleton.limbs), 3))
    root_T33, root_T3, grounded = perform(rng, u, skeleton, energy, angles_TJ3)
    sides = int(np.clip(num_vertices // (5 * len(skeleton.limbs)), 5, 9))
    vertices_TV3, faces, rest, parts = posed(skeleton, angles_TJ3, root_T33, root_T3, sides)
    clearance = 0.0 if grounded else rng.uniform(0, 1)
    return Body(lifted(vertices_TV3, clearance), faces, rest, parts, True, grounded)


def posed(
    skeleton: Skeleton,
    angles_TJ3: Float[Array, "T J 3"],
    root_T33: Float[Array, "T 3 3"],
    root_T3: Float[Array, "T 3"],
    sides: int,
) -> tuple[Float[Array, "T V 3"], Array, Float[Array, "V 3"], Array]:
    """Forward kinematics: vertices over time, triangles, rest positions and each vertex's limb."""
    local_TJ33 = motion.rotation(angles_TJ3)
    frames: list[tuple[Array, Array]] = []
    rests: list[Array] = []
    meshes, placed = [], []
    for number, limb in enumerate(skeleton.limbs):
        joint = limb.joint
        if limb.parent < 0:
            orientation, position, rest = root_T33, root_T3 + root_T33 @ joint, joint
        else:
            parent_T33, parent_T3 = frames[limb.parent]
            orientation, position = parent_T33, parent_T3 + parent_T33 @ joint
            rest = rests[limb.parent] + joint
        orientation = orientation @ local_TJ33[:, number]
        frames.append((orientation, position))
        rests.append(rest)
        mesh = shapes.capsule(limb.tip, limb.radii, limb.flatness, sides)
        meshes.append(mesh)
        placed.append(motion.moved(orientation, position, mesh.vertices))
    whole = shapes.joined(*meshes)
    parts = np.repeat(np.arange(len(meshes)), [len(mesh.vertices) for mesh in meshes])
    return np.concatenate(placed, 1), whole.faces, whole.vertices + np.array(rests)[parts], parts


def _restless(
    rng: np.random.Generator, u: Array, angles_TJ3: Array, amount: float, cycles: float = 1.5
) -> None:
    """Every joint moves a little, and starts a little off the rest pose."""
    num_joints = angles_TJ3.shape[1]
    wander = motion.drift(rng, u, int(rng.integers(4, 5 + round(2 * cycles))), 3 * num_joints)
    angles_TJ3 += amount * wander.reshape(len(u), num_joints, 3) / 2
    angles_TJ3 += amount * rng.normal(size=(num_joints, 3)) / 2


def _human(
    rng: np.random.Generator, u: Array, skeleton: Skeleton, energy: float, angles_TJ3: Array
) -> tuple[Array, Array, bool]:
    at = skeleton.index
    act = rng.choice(
        ["walk", "gesture", "exercise", "dance", "idle", "fly"],
        p=[0.34, 0.26, 0.12, 0.16, 0.06, 0.06],
    )
    _restless(rng, u, angles_TJ3, 0.12 if act != "dance" else 0.2)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        # Arms hang a little away from the body, with soft elbows; legs a little apart.
        angles_TJ3[:, at(f"{side} upper arm"), 0] += sign * rng.uniform(0.05, 0.35)
        angles_TJ3[:, at(f"{side} forearm"), 1] -= rng.uniform(0.1, 0.7)
        angles_TJ3[:, at(f"{side} thigh"), 0] += sign * rng.uniform(0.0, 0.12)
    heading_T = rng.uniform(0, 2 * np.pi) + 0.6 * energy * motion.gesture(rng, u, 1.0, 1)[:, 0]
    root_T3 = 0.05 * energy * motion.gesture(rng, u, 1.0, 3) * [1, 1, 0.3]
    if act == "walk":
        cycles = motion.log_uniform(rng, 0.5, 2.8)
        stride = rng.uniform(0.25, 0.9) * min(1.0, 0.5 + energy)
        heading_T, path_T3, distance_T = motion.ground_path(
            rng, u, cycles * stride, 0.5 * rng.normal()
        )
        root_T3 = path_T3 * (rng.random() < 0.8)
        # Legs go with the ground: the phase is the distance gone, not the clock.
        step_T = 2 * np.pi * (distance_T / stride + rng.uniform())
        swing, knee = 0.9 * stride, rng.uniform(0.4, 1.0) * (0.4 + stride)
        pump = rng.uniform(0.2, 1.0) * swing
        for side, shift in (("left", 0.0), ("right", np.pi)):
            angles_TJ3[:, at(f"{side} thigh"), 1] += swing * np.sin(step_T + shift) - 0.1
            angles_TJ3[:, at(f"{side} shin"), 1] += 0.1 + knee * 0.5 * (
                1 + np.sin(step_T + shift - 1.2)
            )
            angles_TJ3[:, at(f"{side} foot"), 1] -= 0.3 * swing * np.sin(step_T + shift - 0.6)
            angles_TJ3[:, at(f"{side} upper arm"), 1] -= pump * np.sin(step_T + shift)
            angles_TJ3[:, at(f"{side} forearm"), 1] -= 0.4 * pump * (1 - np.sin(step_T + shift))
        angles_TJ3[:, at("spine"), 2] += 0.15 * np.sin(step_T)
        root_T3 = root_T3 + np.array([0, 0, 0.03 * stride]) * np.cos(2 * step_T)[:, None]
    elif act == "gesture":
        for side, sign in (("left", 1.0), ("right", -1.0)):
            if rng.random() < 0.75:
                raised = rng.uniform(0.1, 2.6)
                lift_T2 = energy * motion.gesture(rng, u, 2.5, 2)
                angles_TJ3[:, at(f"{side} upper arm"), 0] += sign * (raised + 0.6 * lift_T2[:, 0])
                angles_TJ3[:, at(f"{side} upper arm"), 1] += rng.uniform(-1.5, 0.3) + lift_T2[:, 1]
                bend_T2 = 0.7 * energy * motion.gesture(rng, u, 3.0, 2)
                angles_TJ3[:, at(f"{side} forearm"), 1] -= np.abs(0.8 + bend_T2[:, 0])
                angles_TJ3[:, at(f"{side} forearm"), 0] += bend_T2[:, 1]
        angles_TJ3[:, at("spine"), :] += 0.25 * energy * motion.gesture(rng, u, 1.5, 3)
        angles_TJ3[:, at("head"), :] += 0.3 * energy * motion.gesture(rng, u, 2.0, 3)
    elif act == "exercise":
        # Squats, jumping jacks, bends: one phase drives everything.
        beat_T = 0.5 - 0.5 * np.cos(motion.phase(rng, u, motion.log_uniform(rng, 0.5, 2.5)))
        squat, bow = rng.uniform(0, 0.9) * min(1, energy * 2), rng.uniform(-0.2, 0.6)
        lift, open_leg = rng.uniform(0, 2.4), rng.choice([0.0, rng.uniform(0, 0.4)])
        for side, sign in (("left", 1.0), ("right", -1.0)):
            angles_TJ3[:, at(f"{side} thigh"), 1] -= squat * beat_T
            angles_TJ3[:, at(f"{side} shin"), 1] += 2 * squat * beat_T
            angles_TJ3[:, at(f"{side} foot"), 1] -= squat * beat_T
            angles_TJ3[:, at(f"{side} thigh"), 0] += sign * open_leg * beat_T
            angles_TJ3[:, at(f"{side} upper arm"), 0] += sign * lift * beat_T
            angles_TJ3[:, at(f"{side} upper arm"), 1] -= 0.5 * bow * beat_T
        angles_TJ3[:, at("spine"), 1] += bow * beat_T
        leg = -skeleton.limbs[at("left shin")].tip[2]
        root_T3 = root_T3 - np.array([0, 0, 2 * leg]) * (1 - np.cos(squat * beat_T))[:, None]
    elif act == "dance":
        scale_J3 = np.full((angles_TJ3.shape[1], 3), 0.2)
        for name in ("upper arm", "forearm", "thigh", "shin"):
            for side in ("left", "right"):
                scale_J3[at(f"{side} {name}")] = (
                    [0.7, 0.9, 0.3] if "arm" in name else [0.2, 0.5, 0.1]
                )
        moves = motion.gesture(rng, u, 2.5, angles_TJ3[0].size).reshape(angles_TJ3.shape)
        angles_TJ3 += energy * scale_J3 * moves
        for side in ("left", "right"):
            shin = angles_TJ3[:, at(f"{side} shin"), 1]
            angles_TJ3[:, at(f"{side} shin"), 1] = np.sqrt(shin**2 + 0.01)
        heading_T = heading_T + 0.8 * energy * motion.gesture(rng, u, 1.0, 1)[:, 0]
        root_T3 = root_T3 + 0.25 * energy * motion.gesture(rng, u, 1.5, 3) * [1, 1, 0.15]
    elif act == "fly":
        # Jumping, falling, swimming, hanging: the whole body turns in the air.
        angles_TJ3 += (
            energy * 0.4 * motion.gesture(rng, u, 2.0, angles_TJ3[0].size).reshape(angles_TJ3.shape)
        )
        reach, turn = energy * rng.uniform(0.1, 1.0), energy * rng.uniform(0.2, 2.0)
        root_T33, root_T3 = motion.wandering_pose(rng, u, reach, turn, 1.0)
        return root_T33, root_T3, False
    lean_T3 = 0.05 * motion.drift(rng, u, 5, 3) * [1, 1, 0]
    return motion.yaw(heading_T) @ motion.rotation(lean_T3), root_T3, True


def _quadruped(
    rng: np.random.Generator, u: Array, skeleton: Skeleton, energy: float, angles_TJ3: Array
) -> tuple[Array, Array, bool]:
    at = skeleton.index
    _restless(rng, u, angles_TJ3, 0.1)
    heading_T = rng.uniform(0, 2 * np.pi) + 0.6 * energy * motion.gesture(rng, u, 1.0, 1)[:, 0]
    root_T3 = 0.04 * energy * motion.gesture(rng, u, 1.0, 3) * [1, 1, 0.3]
    pitch = np.zeros(len(u))
    if rng.random() < 0.6:
        cycles = motion.log_uniform(rng, 0.5, 2.8)
        stride = rng.uniform(0.2, 0.8)
        heading_T, path_T3, distance_T = motion.ground_path(
            rng, u, cycles * stride, 0.6 * rng.normal()
        )
        root_T3 = path_T3 * (rng.random() < 0.8)
        step_T = 2 * np.pi * (distance_T / stride + rng.uniform())
        # Lateral-sequence walk, trot, pace and bound: phases of left/right hind, left/right front.
        gaits = [(0, 0.5, 0.25, 0.75), (0, 0.5, 0.5, 0), (0, 0.5, 0, 0.5), (0, 0.1, 0.5, 0.6)]
        gait = gaits[int(rng.choice(4, p=[0.4, 0.3, 0.1, 0.2]))]
        legs = ("left hind", "right hind", "left front", "right front")
        swing, knee = rng.uniform(0.6, 1.2) * stride, rng.uniform(0.3, 0.9)
        for leg, shift in zip(legs, gait, strict=True):
            angle_T = step_T + 2 * np.pi * shift
            flex_T = 0.5 * knee * (1 + np.sin(angle_T - 1.2))
            hind = "hind" in leg
            angles_TJ3[:, at(f"{leg} thigh"), 1] += swing * np.sin(angle_T) - (
                0.4 * flex_T if hind else 0
            )
            angles_TJ3[:, at(f"{leg} shin"), 1] += flex_T
        bound = gait[1] == 0.1
        angles_TJ3[:, at("chest"), 1] += (0.35 if bound else 0.05) * stride * np.sin(step_T)
        pitch = (0.25 if bound else 0.03) * stride * np.sin(step_T + 1)
        root_T3 = root_T3 + np.array([0, 0, 0.05 * stride]) * np.cos(2 * step_T)[:, None]
    else:
        crouch = rng.choice([0.0, rng.uniform(0, 0.9)])
        for end in ("left hind", "right hind", "left front", "right front"):
            angles_TJ3[:, at(f"{end} thigh"), 1] += (
                0.2 * energy * motion.gesture(rng, u, 1.5, 1)[:, 0]
            )
            if "hind" in end:
                angles_TJ3[:, at(f"{end} thigh"), 1] -= 0.8 * crouch
                angles_TJ3[:, at(f"{end} shin"), 1] += 1.6 * crouch
        if rng.random() < 0.3:
            paw = f"{rng.choice(['left', 'right'])} front"
            lift_T2 = energy * motion.gesture(rng, u, 2.5, 2)
            angles_TJ3[:, at(f"{paw} thigh"), 1] -= 0.6 + 0.8 * lift_T2[:, 0]
            angles_TJ3[:, at(f"{paw} shin"), 1] += 0.8 + 0.8 * lift_T2[:, 1]
        pitch = pitch - 0.4 * crouch
    look = motion.gesture(rng, u, 2.0, 6).reshape(-1, 2, 3)
    angles_TJ3[:, [at("neck"), at("head")]] += energy * np.array([0.15, 0.35, 0.5]) * look
    wag_T = rng.uniform(0, 0.6) * np.sin(motion.phase(rng, u, motion.log_uniform(rng, 0.3, 3.0)))
    angles_TJ3[:, at("tail 0"), 2] += wag_T
    angles_TJ3[:, at("tail 1"), 2] += 1.3 * wag_T
    pitch_T3 = np.stack([0 * pitch, pitch, 0 * pitch], -1)
    return motion.yaw(heading_T) @ motion.rotation(pitch_T3), root_T3, True


def _bird(
    rng: np.random.Generator, u: Array, skeleton: Skeleton, energy: float, angles_TJ3: Array
) -> tuple[Array, Array, bool]:
    _restless(rng, u, angles_TJ3, 0.1)
    beat_T = motion.phase(rng, u, motion.log_uniform(rng, 0.5, 3.0))
    flap = rng.uniform(0.1, 0.9)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        angles_TJ3[:, skeleton.index(f"{side} wing"), 0] += sign * flap * (0.15 + np.sin(beat_T))
        tip_T = sign * 0.8 * flap * (np.sin(beat_T - 1.0) - 0.2)
        angles_TJ3[:, skeleton.index(f"{side} wing tip"), 0] += tip_T
    heading_T, root_T3, _ = motion.ground_path(rng, u, 1.5 * energy, 0.6 * rng.normal())
    root_T3 = root_T3 + 0.4 * energy * motion.gesture(rng, u, 1.0, 3)
    root_T3 = root_T3 - np.array([0, 0, 0.06 * flap]) * np.sin(beat_T)[:, None]
    bank = motion.rotation(0.4 * energy * motion.gesture(rng, u, 1.0, 3))
    return motion.yaw(heading_T) @ bank, root_T3, False


def _hand(
    rng: np.random.Generator, u: Array, skeleton: Skeleton, energy: float, angles_TJ3: Array
) -> tuple[Array, Array, bool]:
    _restless(rng, u, angles_TJ3, 0.06)
    # Fingers curl about y (the palm faces x); neighbours curl together.
    together_T = motion.gesture(rng, u, 2.5, 1)[:, 0]
    mean, alone = rng.uniform(0.0, 1.0), rng.uniform(0, 0.6)
    for number, limb in enumerate(skeleton.limbs):
        if limb.name.startswith(("finger", "thumb")):
            if limb.name.endswith("0"):
                own_T = motion.gesture(rng, u, 2.5, 1)[:, 0]
            curl_T = mean + energy * (0.8 * together_T + alone * own_T)
            bent = 0.5 * (curl_T + np.sqrt(curl_T**2 + 0.05))
            angles_TJ3[:, number, 1] += (0.5 if "thumb" in limb.name else 0.8) * bent
            if limb.name.endswith("0"):
                angles_TJ3[:, number, 0] += rng.uniform(-0.1, 0.1)
    angles_TJ3[:, skeleton.index("palm")] += 0.4 * energy * motion.gesture(rng, u, 2.0, 3)
    root_T33, root_T3 = motion.wandering_pose(rng, u, 0.3 * energy, 0.5 * energy, 1.5)
    return root_T33, root_T3, False


def _arm(
    rng: np.random.Generator, u: Array, skeleton: Skeleton, energy: float, angles_TJ3: Array
) -> tuple[Array, Array, bool]:
    _restless(rng, u, angles_TJ3, 0.1)
    moves = motion.gesture(rng, u, 2.0, angles_TJ3[0].size).reshape(angles_TJ3.shape)
    angles_TJ3 += 0.6 * energy * moves * [0.5, 1.0, 0.5] + rng.normal(size=(1, angles_TJ3.shape[1], 3)) * [
        0.2, 0.4, 0.2
    ]  # fmt: skip
    turn_T = energy * motion.gesture(rng, u, 1.5, 1)[:, 0] + rng.uniform(0, 2 * np.pi)
    return motion.yaw(turn_T), np.zeros((len(u), 3)), bool(rng.random() < 0.7)


def _chain(
    rng: np.random.Generator, u: Array, skeleton: Skeleton, energy: float, angles_TJ3: Array
) -> tuple[Array, Array, bool]:
    count = angles_TJ3.shape[1]
    waves = rng.uniform(0.6, 1.8)
    travel_T = motion.phase(rng, u, motion.log_uniform(rng, 0.3, 2.5))
    lag_J = 2 * np.pi * waves * np.arange(count) / count
    amount = rng.uniform(0.5, 1.6) * waves * 2 * np.pi / count * min(1.0, 0.4 + energy) * 0.6
    grounded = bool(rng.random() < 0.6)
    angles_TJ3[..., 2] += amount * np.sin(travel_T[:, None] - lag_J)
    curl_T = energy * motion.gesture(rng, u, 1.0, 1)[:, 0] + rng.normal() * 0.5
    angles_TJ3[..., 2] += curl_T[:, None] / count
    if grounded:
        heading_T, root_T3, _ = motion.ground_path(rng, u, 0.8 * energy, 0.3 * rng.normal())
        return motion.yaw(heading_T), root_T3, True
    _restless(rng, u, angles_TJ3, 0.15)
    root_T33, root_T3 = motion.wandering_pose(rng, u, 0.2 * energy, 0.6 * energy, 1.5)
    return root_T33, root_T3, False


def _tree(
    rng: np.random.Generator, u: Array, skeleton: Skeleton, energy: float, angles_TJ3: Array
) -> tuple[Array, Array, bool]:
    _restless(rng, u, angles_TJ3, 0.2)
    moves = motion.gesture(rng, u, 2.5, angles_TJ3[0].size).reshape(angles_TJ3.shape)
    angles_TJ3 += 0.6 * energy * moves
    if rng.random() < 0.5:
        heading_T, root_T3, _ = motion.ground_path(rng, u, energy, 0.5 * rng.normal())
        return motion.yaw(heading_T), root_T3, True
    root_T33, root_T3 = motion.wandering_pose(rng, u, 0.4 * energy, energy, 1.5)
    return root_T33, root_T3, False


_KINDS: dict[str, tuple[Callable[[np.random.Generator], Skeleton], Performance]] = {
    "human": (skeletons.human, _human),
    "quadruped": (skeletons.quadruped, _quadruped),
    "hand": (skeletons.hand, _hand),
    "bird": (skeletons.bird, _bird),
    "arm": (skeletons.arm, _arm),
    "chain": (skeletons.chain, _chain),
    "tree": (skeletons.tree, _tree),
}
