"""Settings of a training run, as nested frozen values; the command line is derived from them."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import tyro

SamplerName = Literal[
    "ancestral", "angular", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "euler", "heun", "renoised", "unipc"
]  # fmt: skip
"""How steps are taken (`sampling.table_for`)."""

if TYPE_CHECKING:
    SamplerOption = SamplerName | None
else:
    # To the command line a string: what it can be is checked where it is used, with an error of one line.
    SamplerOption = Annotated[
        str | None, tyro.conf.arg(metavar=f"{{{','.join(get_args(SamplerName))}}}")
    ]


@dataclasses.dataclass(frozen=True)
class BuildPack:
    """Build a pack of actors (meshes that move) from folders of public sources, by a recipe."""

    recipe: Path = Path("experiments/pack/recipe.toml")
    """TOML file that says which files become which actors; experiments/pack/README.md says where to get them."""
    sources: Path = Path("sources")
    """Folder that the recipe's paths start from."""
    out: Path = Path("runs/pack")
    """Folder for the pack. An actor replaces one of the same name."""
    only: tuple[Literal["animated", "skeletons", "mocap", "simulated"], ...] = ()
    """Kinds of tables to build; all by default."""


@dataclasses.dataclass(frozen=True)
class FindModes:
    """Find the modes and clusters of sampled hypotheses, and write them beside these."""

    folder: tyro.conf.Positional[Path]
    """Folder that `diffusion4d sample` wrote, or its hypotheses.npz; sample 32 or more for this."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for modes.npz, modes.glb, modes.png and modes.json; that of the hypotheses by default."""
    noise: Literal["auto", "white", "coloured"] = "auto"
    """What modes have to stand out of; auto takes white noise where it fits and says what it took."""
    level: float = 0.01
    """Chance of taking noise for a mode."""
    most_clusters: int = 8
    """Clusters at most."""
    seconds: float | None = None
    """Length of the animation; that of the clip by summary.json, or the frames at 30 a second."""
    seed: int = 0
    """Of the noise that the hypotheses are compared with."""


@dataclasses.dataclass(frozen=True)
class View:
    """Look at sampled hypotheses in the browser: play, compare, colour, pick points, keep and reject."""

    folder: tyro.conf.Positional[Path] = Path("out")
    """Folder that `diffusion4d sample` wrote, or its hypotheses.npz."""
    video: Path | None = None
    """The clip that was sampled; the one that summary.json names by default."""
    html: Path | None = None
    """Write the page to this file, which needs no server, instead of serving it."""
    port: int = 8484
    """On this machine's own address; 0 takes a free one."""
    browse: bool = True
    """Open the browser."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write sampled hypotheses in the formats of other tools, beside the files of `diffusion4d sample`."""

    folder: tyro.conf.Positional[Path] = Path("out")
    """Folder that `diffusion4d sample` wrote, or its hypotheses.npz."""
    formats: tuple[
        Literal["ply", "usd", "gaussians", "tapvid3d", "tapip3d", "trackcraft3r"], ...
    ] = ("usd", "tapvid3d")
    """PLY and 3D Gaussian PLY of every frame, one USD file, or one trajectory a point in a tracker's npz."""
    hypotheses: str = "best"
    """Which: best, mean, all, kept (by the choice.json that `diffusion4d view` saves), or their numbers, as 0,3,7."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder to write into; that of the hypotheses by default."""
    video: Path | None = None
    """The clip, for the colours of Gaussians and of PLY points; points are warm where they are near without."""
    start: float | None = None
    """Seconds into the video where the clip starts; as it was sampled by summary.json, or 0."""


@dataclasses.dataclass(frozen=True)
class Animate:
    """Drive a dense surface by sampled hypotheses: a mesh of yours, or the surface of the points themselves."""

    mesh: tyro.conf.Positional[Path | None] = None
    """Mesh file (glb, whose looks are kept; obj, ply, …) placed where hypotheses.glb has its points in the first frame,
    amid those of all hypotheses. Without one, the points' own surface."""
    source: Annotated[Path, tyro.conf.arg(name="from")] = Path("out")
    """Folder that `diffusion4d sample` wrote, or its hypotheses.npz."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for animated.glb; that of the hypotheses by default."""
    hypotheses: str = "all"
    """Which hypotheses: all, best, kept (by the choice.json that `diffusion4d view` saves), or numbers, as 0,3,7."""
    video: Path | None = None
    """The clip, for the looks of the points' own surface."""
    depth: Path | None = None
    """npz with the array `depth` [T, H, W]: z of every frame, each up to a factor, NaN or 0 where it is not known. The
    points' own surface is then fused out of all frames, and has what the first one does not show."""
    start: float | None = None
    """Seconds into the video where the clip starts; as it was sampled by summary.json, or 0."""
    ply: bool = False
    """Also a PLY file for every frame, in animated/hypothesis_00 …"""
    blend: Literal["linear", "dual_quaternion", "additive"] = "linear"
    """How nodes move the surface in the PLY files; skinned glTF is linear by definition."""
    seconds: float | None = None
    """Length of the animation; that of the clip by summary.json, or the frames at 30 a second."""


@dataclasses.dataclass(frozen=True)
class PoolSpec:
    """Which worlds a pool holds."""

    worlds: int = 20_000
    """Worlds in the pool, rounded up to whole shards of 128."""
    points: int = 128
    """Points a world."""
    frames: int = 32
    """Frames a world."""
    first_seed: int = 0
    """Seed of the first world; held-out worlds start at 2147483648."""
    pack: Path | None = None
    """Pack of actors that bodies are taken from; without it, all bodies are generated."""
    splits: tuple[str, ...] = ("train",)
    """Splits of the pack: train, held-out, test."""
    actors_only: bool = False
    """Every main body is an actor of the pack."""
    ambiguous: float = 0.08
    """Share of worlds with two distinct answers, unless there are only actors."""


@dataclasses.dataclass(frozen=True)
class Dropout:
    """How often a kind of evidence is withheld in training."""

    tracks: float = 0.05
    """Share of clips whose tracks are seen in the anchor frame only."""
    focal: float = 0.3
    """Share of clips whose focal length is withheld."""
    tokens: float = 0.1
    """Share of batches with images whose tokens are withheld."""


@dataclasses.dataclass(frozen=True)
class Network:
    """Size of the network."""

    num_ctrl: int = 12
    """Control points a trajectory; 12 for up to about 48 frames."""
    width: int = 192
    depth: int = 6
    num_heads: int = 3
    token_channels: int = 128
    """Channels of the encoder's tokens; 0 for a network that takes none."""
    parallax: bool = False
    """The network is also told the observed motion without the motion of the whole picture (`parallax`)."""
    multiplicity: int = 1
    """How often each interior knot is repeated; 3 makes cubic Bézier pieces that share no more than their ends."""
    path: Literal["cosine", "rectified"] = "cosine"
    """Between noise and data; rectified: straight, with white noise and the flow as what is learnt."""


@dataclasses.dataclass(frozen=True)
class Optimisation:
    """How weights are found."""

    steps: int = 8_000
    batch: int = 32
    """Clips a step."""
    points: int = 64
    """Trajectories a clip."""
    learning_rate: float = 1e-3
    warmup: int = 200
    """Steps of linear warm-up, before the cosine."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what is saved."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network on generated worlds."""

    out: Path = Path("runs/tiny")
    """Folder of the run: checkpoint, logs, and the finished model. A run that finds its checkpoint goes on."""
    objective: Literal[
        "velocity", "energy", "progressive", "consistency", "mean", "median", "gaussian"
    ] = "velocity"
    """velocity: the sampler; energy: the sampler, through its few steps, on the energy score; progressive,
    consistency: a sampler of few steps that goes where a velocity network goes in many; mean, median: its L2 and L1
    twins; gaussian: the regressor that a sampler can stand on."""
    regressor: Path | None = None
    """Finished "gaussian" model whose residual a "velocity" network learns."""
    teacher: Path | None = None
    """Finished sampler that a "progressive" or "consistency" one starts from and learns from: a velocity network, or
    for "progressive" also one of twice the steps."""
    start_from: Path | None = None
    """Finished model whose weights, where they fit, are the first weights."""
    pool: Path = Path("runs/pool")
    """Folder of generated worlds; those that are missing are generated."""
    rendered: Path | None = None
    """Folder of rendered worlds (those missing are rendered); without it, training sees tracks alone."""
    encoder: str = "tiny"
    """Encoder of the rendered worlds' tokens: a packaged one, a folder or a model id."""
    image_share: float = 0.3
    """Share of steps drawn from the rendered worlds, if there are any."""
    noisy_power: float = 0.5
    """Diffusion times are drawn as uniform ** this: below 1, more of them where noise is high."""
    solver_steps: tuple[int, ...] = (2,)
    """Steps that an "energy" sampler is trained through: every training step draws one of these numbers. The last one
    is what the sampler takes by default ever after. A "progressive" sampler is trained for one number of steps."""
    intervals: int = 8
    """Steps of the teacher from noise to data, for "consistency"; for "progressive" they are twice --solver-steps."""
    solver_samples: int = 2
    """Samples of a clip whose energy score is taken."""
    tail: float = 0.0
    """How heavy the tails of an "energy" sampler's noise are: the log deviation of its scale between hypotheses."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 pays where the processor multiplies it natively; weights stay in float32."""
    save_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    processes: int = 2
    """Processes that generate worlds."""
    network: Network = dataclasses.field(default_factory=Network)
    optimisation: Optimisation = dataclasses.field(default_factory=Optimisation)
    worlds: PoolSpec = dataclasses.field(default_factory=PoolSpec)
    images: "RenderedSpec" = dataclasses.field(default_factory=lambda: RenderedSpec())
    dropout: Dropout = dataclasses.field(default_factory=Dropout)


@dataclasses.dataclass(frozen=True)
class RenderedSpec:
    """Which rendered worlds a pool holds."""

    worlds: int = 2_500
    """Worlds in the pool."""
    points: int = 128
    """Points a world."""
    frames: int = 32
    """Frames a world."""
    key_frames: int = 6
    """Frames that are rendered: those nearest to the Greville abscissae of a cubic with as many control points."""
    side: int = 128
    """Shorter side of the images, px."""
    samples: int = 1
    """Rays along each side of a pixel: 2 is smoother and takes four times as long."""
    first_seed: int = 1_000_000
    """Seed of the first world; held-out worlds start at 2147483648."""
    pack: Path | None = None
    """Pack of actors that bodies are taken from; without it, all bodies are generated."""
    splits: tuple[str, ...] = ("train",)
    """Splits of the pack: train, held-out, test."""
    actors_only: bool = False
    """Every main body is an actor of the pack."""


@dataclasses.dataclass(frozen=True)
class TrainEncoder:
    """Train the small image encoder on rendered worlds."""

    out: Path = Path("runs/encoder")
    """Folder of the run: checkpoint, logs, and the finished model. A run that finds its checkpoint goes on."""
    start_from: str | None = None
    """Encoder (tiny or a folder) whose weights are the first ones, and its head's if that has the same shape."""
    pool: Path = Path("runs/rendered")
    """Folder of rendered worlds; those that are missing are rendered."""
    head: Literal["dpt", "linear"] = "dpt"
    """What reads pointmaps from the tokens: a dense prediction transformer's head, or a linear one."""
    steps: int = 2_500
    batch: int = 24
    """Clips a step, with two key frames each."""
    points: int = 64
    """Surface points a clip."""
    learning_rate: float = 1e-3
    warmup: int = 100
    """Steps of linear warm-up, before the cosine."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema: float = 0.998
    """Decay of the moving average of the weights, which is what is saved."""
    temperature: float = 0.07
    """Of the softmax over candidates."""
    radius: float = 8.0
    """Points of one image closer than this, in pixels, are no negatives of each other."""
    pointmap_weight: float = 1.0
    """Weight of the loss on pointmaps."""
    descriptors: int = 0
    """Numbers of a descriptor that the head gives each cell; with 0 it tells depth alone, and no confidence either."""
    frozen: bool = False
    """Train the head alone, and leave the encoder of `start_from` as it is."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 pays where the processor multiplies it natively; weights stay in float32."""
    save_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    processes: int = 2
    """Processes that render worlds."""
    worlds: RenderedSpec = dataclasses.field(default_factory=RenderedSpec)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a sampler, its twins bare and dressed, and older baselines on held-out clips with truth."""

    model: str = "tiny"
    """The sampler: a packaged model or a folder."""
    twin: str | None = "tiny-l2"
    """The deterministic twin trained with squared error: a packaged model or a folder."""
    l1_twin: str | None = None
    """A twin trained with absolute error."""
    peer: str | None = None
    """Another sampler to compare with."""
    out: Path = Path("runs/evaluation")
    """Folder for scores.json, scores.md and pictures."""
    clips: Path | None = None
    """Folder of clips with truth (npz in the layout of TAPVid-3D) to score instead of generated worlds."""
    rendered: Path | None = None
    """Folder of rendered worlds to score, with their pictures, instead of generated ones; none are added."""
    pool: Path = Path("runs/held-out")
    """Folder of generated worlds; those that are missing are generated."""
    pool_points: int = 64
    """Points a world of the pool."""
    pack: Path | None = None
    """Pack of actors that the pool's bodies are taken from; without it, all bodies are generated."""
    splits: tuple[str, ...] = ("held-out",)
    """Splits of the pack."""
    actors_only: bool = False
    """Every main body is an actor of the pack."""
    write_clips: Path | None = None
    """Also write the worlds that are scored into this folder, as clips with truth."""
    scenes: int = 512
    """Worlds or clips to score."""
    fitting_scenes: int = 128
    """Further worlds, on which the dressing is fitted. Where there are not as many, each half has it of the other."""
    first_world: int = 0
    """Skip so many held-out worlds; 100000 upwards were used to choose settings, and are never scored."""
    points: int = 64
    """Points a clip, drawn out of those it has."""
    max_frames: int = 48
    """Of longer clips so many frames are used, from the first."""
    tokens: Literal["auto", "none"] = "auto"
    """auto: the pictures of clips that have them go through the model's encoder; none: tracks alone."""
    steps: int | None = None
    """Denoiser evaluations a hypothesis; the model's own number by default."""
    sweep: tuple[int, ...] = (1, 2, 4)
    """Further numbers of steps, on the first `sweep_clips` clips."""
    sweep_clips: int = 128
    """Clips that the further numbers of steps are scored on."""
    sampling_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the sampler's network; bf16 is refused where the processor does not multiply it natively."""
    sampler: SamplerOption = None
    """How the steps are taken; the model's own way by default."""
    processes: int = 2
    """Processes that generate worlds."""
