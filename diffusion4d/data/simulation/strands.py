r"""Strands: chains of rods on a root that follows a path, and the tubes that are their skins.

A strand is a chain of rods joined by ball joints with a spring k and a damper c each; the rings of its tube lie
in the joints, in the mean of the two neighbours' axes. Without springs, a hanging chain of length L swings at
ω = (j₀/2) √(g/L), j₀ = 2.405 the first zero of the Bessel function J₀ (Bernoulli 1738).
The root is welded to a handle that follows a path, whatever the strands weigh.
Shape letters:  T frames   V vertices   L rods   J joints (rings).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffusion4d.data.simulation.stage import (
    STIFF,
    Model,
    Piece,
    State,
    along,
    numbers,
    tube_faces,
)

Array = np.ndarray


@dataclass(frozen=True)
class Strand:
    """A chain of `links` rods from `start` in `direction` (in the root's axes); lengths in m, mass in kg.

    `stiffness` (N m) and `damping` (N m s) belong to every joint; `tip` is the radius there over that at the root;
    `flat` the thickness over the width. A strand that `touches` collides with all but its own kind.
    """

    name: str
    start: Float[Array, "3"]
    direction: Float[Array, "3"]
    links: int
    length: float
    radius: float
    mass: float
    stiffness: float
    damping: float
    tip: float = 0.6
    flat: float = 1.0
    touches: bool = False
    weight: str = ""

    def bodies(self) -> str:
        """Nested bodies, every rod along its own z; `weight` is a geom in the axes of the last one's end."""
        rod, text = self.length / self.links, ""
        mass = self.mass / self.links
        touch = 'contype="2" conaffinity="1"' if self.touches else 'contype="0" conaffinity="0"'
        for link in range(self.links):
            where = f'pos="0 0 {rod:.7g}"'
            if link == 0:
                where = f'pos="{numbers(self.start)}" zaxis="{numbers(self.direction)}"'
            text += (
                f'<body name="{self.name}_{link}" {where}>'
                f'<joint type="ball" stiffness="{self.stiffness:.6g}" damping="{self.damping:.6g}" '
                # Turning about itself, a thin rod has next to no inertia; a little keeps it calm.
                f'armature="{0.01 * mass * rod**2:.6g}"/>'
                f'<geom name="{self.name}_{link}" type="capsule" fromto="0 0 0 0 0 {rod:.7g}" '
                f'size="{self.radius * self._taper(link + 0.5):.6g}" mass="{mass:.6g}" {touch} {STIFF}/>'
            )
        if self.weight:
            text += f'<body pos="0 0 {rod:.7g}"><geom {self.weight}/></body>'
        return text + "</body>" * self.links

    def _taper(self, place: float | int) -> float:
        return 1 + (self.tip - 1) * place / self.links

    @property
    def geoms(self) -> list[str]:
        """Names of the rods, which the tube hides."""
        return [f"{self.name}_{link}" for link in range(self.links)]

    def skin(self, model: Model, around: int) -> Piece:
        """A tube of `around` corners a ring, closed at both ends."""
        body = np.array([model.body(name).id for name in self.geoms])
        angle = 2 * np.pi * np.arange(around) / around
        radius_J1 = self.radius * np.array([[self._taper(j)] for j in range(self.links + 1)])
        rod = self.length / self.links

        def place(state: State) -> Float[Array, "V 3"]:
            axes_L33 = state.xmat[body].reshape(-1, 3, 3)
            end_3 = state.xpos[body[-1]] + rod * axes_L33[-1, :, 2]
            joint_J3 = np.concatenate([state.xpos[body], end_3[None]])
            # A ring stands in the mean of the rods before and after it.
            side_J3, front_J3 = (_between(axes_L33[:, :, axis]) for axis in (0, 1))
            ring_JA3 = (
                np.cos(angle)[:, None] * (radius_J1 * side_J3)[:, None]
                + np.sin(angle)[:, None] * (self.flat * radius_J1 * front_J3)[:, None]
            )
            tube_JA3 = joint_J3[:, None] + ring_JA3
            tip_3 = end_3 + radius_J1[-1] * axes_L33[-1, :, 2]
            return np.concatenate([tube_JA3.reshape(-1, 3), joint_J3[:1], tip_3[None]])

        return Piece(tube_faces(self.links + 1, around), place, -1)


def _between(axis_L3: Float[Array, "L 3"]) -> Float[Array, "J 3"]:
    """Unit vectors at the joints: the first rod's, the means of neighbours, the last rod's."""
    mean_J3 = np.concatenate([axis_L3[:1], axis_L3[:-1] + axis_L3[1:], axis_L3[-1:]])
    return mean_J3 / np.maximum(np.linalg.norm(mean_J3, axis=-1, keepdims=True), 1e-9)


@dataclass(frozen=True)
class Handle:
    """Where the root is over time: positions and rotation vectors, evenly sampled over `seconds`."""

    path: Float[Array, "T 6"]
    seconds: float

    def __call__(self, model: Model, state: State) -> None:
        from scipy.spatial.transform import Rotation

        now_6 = along(self.path, state.time / self.seconds)
        state.mocap_pos[0] = now_6[:3]
        state.mocap_quat[0] = Rotation.from_rotvec(now_6[3:]).as_quat(scalar_first=True)


def rooted(geoms: str, strands: list[Strand], mass: float) -> str:
    """The root, welded to the handle, and what hangs on it. The root outweighs all by far, so the weld holds."""
    total = 20 * mass
    return (
        '<worldbody><body name="handle" mocap="true"/><body name="root"><freejoint/>'
        f'<inertial pos="0 0 0" mass="{total:.6g}" diaginertia="{numbers([0.1 * total] * 3)}"/>'
        f"{geoms}{''.join(strand.bodies() for strand in strands)}</body></worldbody>"
        f'<equality><weld body1="root" body2="handle" {STIFF}/></equality>'
    )
