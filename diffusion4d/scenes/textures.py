r"""What surfaces look like: solid textures and light.

A texture is a colour as a function of the rest position, so it moves and deforms with the surface. Patterns are mixed
from two to four colours by a scalar field in [0, 1]: noise (sums of random plane waves), checker, stripes,
spots, or plain. Light is one direction plus an ambient part, Lambert's law.
Shape letters:  P surface points   S colours.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffusion4d.scenes import motion

Array = np.ndarray
PATTERNS = ("noise", "checker", "stripes", "spots", "plain")
Odds = tuple[float, float, float, float, float]
ON_BODIES: Odds = (0.4, 0.1, 0.16, 0.14, 0.2)
BEHIND: Odds = (0.5, 0.07, 0.09, 0.05, 0.29)


@dataclass(frozen=True)
class Texture:
    """A pattern, its colours [S, 3] in [0, 1], and the plane waves [3, 8] and phases [8] it is made of."""

    pattern: str
    palette: Float[Array, "S 3"]
    waves: Float[Array, "3 8"]
    phases: Float[Array, "8"]
    grain: float

    def colour(self, rest_P3: Float[Array, "P 3"]) -> Float[Array, "P 3"]:
        """Colour at rest positions."""
        waves, phases = self.waves.astype(rest_P3.dtype), self.phases.astype(rest_P3.dtype)

        def wave(first: int, last: int) -> Array:
            return np.sin(rest_P3 @ waves[:, first:last] + phases[first:last])

        def lattice(wobble: Array | float) -> Array:
            """Three waves along axes made orthogonal: cells in space, tilted anyhow."""
            axes = np.linalg.qr(waves[:, :3])[0] * np.linalg.norm(waves[:, 0])
            return np.sin(rest_P3 @ axes + phases[:3] + wobble)

        if self.pattern == "noise":
            # Amplitude goes with the inverse of frequency, roughly as in nature.
            fractal = wave(0, 5).sum(-1) + wave(5, 8) @ np.array([0.7, 0.5, 0.35], waves.dtype)
            field = 0.5 + 0.5 * np.tanh(0.7 * fractal)
        elif self.pattern == "checker":
            field = 0.5 + 0.5 * np.sign(lattice(0.0)).prod(-1)
        elif self.pattern == "stripes":
            bent = rest_P3 @ waves[:, 0] + phases[0] + 0.6 * wave(1, 2)[:, 0]
            field = 0.5 + 0.5 * np.tanh(3 * np.sin(bent))
        elif self.pattern == "spots":
            field = 0.5 + 0.5 * np.tanh(4 * (lattice(0.5 * wave(3, 6)).sum(-1) - 0.9))
        elif self.pattern == "plain":
            field = 0.075 + 0.075 * np.tanh(0.9 * wave(0, 4).sum(-1))
        else:
            raise ValueError(f"need a pattern of {PATTERNS}, got {self.pattern!r}")
        scaled = field * (len(self.palette) - 1)
        low = np.minimum(scaled.astype(np.int64), len(self.palette) - 2)
        share = (scaled - low)[:, None]
        colour = (1 - share) * self.palette[low] + share * self.palette[low + 1]
        # A finer, weaker noise over everything: hardly anything real is perfectly plain.
        grain = np.sin(1.3 * rest_P3 @ waves[:, 4:] + phases[4:]).sum(-1)
        return np.clip(colour * (1 + self.grain * 0.25 * grain)[:, None], 0, 1)


@dataclass(frozen=True)
class Light:
    """Direction towards the light (world axes, unit), its share of the whole, whether it casts shadows, sky colours."""

    direction: Float[Array, "3"]
    strength: float
    shadows: bool
    horizon: Float[Array, "3"]
    zenith: Float[Array, "3"]


def _colour(rng: np.random.Generator) -> Array:
    """Mostly muted colours, some vivid, some grey: hue, saturation, value to RGB."""
    hue, value = rng.uniform(0, 6), rng.uniform(0.2, 0.95)
    ranges = [rng.uniform(0, 0.2), rng.uniform(0.1, 0.6), rng.uniform(0.5, 1)]
    saturation = rng.choice(ranges, p=[0.4, 0.45, 0.15])
    ramp = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation + saturation * ramp)


def random_texture(rng: np.random.Generator, size: float, loud: float, odds: Odds) -> Texture:
    """A texture for an object of that size, its features a twentieth to a whole of it.

    `odds` are those of PATTERNS; `loud` is the share of textures in several colours, the others being shades of
    one, as fur, skin, wood and walls are.
    """
    pattern = str(rng.choice(PATTERNS, p=odds))
    palette = np.stack([_colour(rng) for _ in range(int(rng.integers(2, 5)))])
    if rng.random() >= loud:
        contrast = rng.uniform(0.1, 0.6)
        palette = palette[:1] * (1 + contrast * rng.uniform(-1, 1, (len(palette), 1)))
        palette = np.clip(palette, 0, 1)
    frequency = motion.log_uniform(rng, 5.0, 60.0) / size
    waves = rng.normal(size=(3, 8))
    # Waves 0–3 are coarse, and set how large cells and stripes are; 4–7 go up by octaves.
    octave = np.array([0.5, 0.7, 1.0, 1.0, 1.0, 2.0, 4.0, 8.0])
    waves *= frequency * octave * rng.uniform(0.7, 1.3, 8) / np.linalg.norm(waves, axis=0)
    return Texture(pattern, palette, waves, rng.uniform(0, 2 * np.pi, 8), rng.uniform(0.02, 0.25))


def random_light(rng: np.random.Generator) -> Light:
    """Sun, lamp or overcast sky, from above."""
    direction = motion.unit_vector(rng)
    direction[2] = abs(direction[2]) + 0.25
    sky = _colour(rng) if rng.random() < 0.4 else np.array([0.75, 0.82, 0.9])
    horizon = np.clip(sky * rng.uniform(0.7, 1.2), 0, 1)
    return Light(
        direction / np.linalg.norm(direction),
        float(rng.uniform(0.25, 0.75)),
        bool(rng.random() < 0.6),
        horizon,
        np.clip(horizon * rng.uniform(0.5, 1.0, 3), 0, 1),
    )
