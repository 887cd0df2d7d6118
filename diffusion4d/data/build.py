r"""Build a pack from folders of public sources, by a recipe.

A recipe is a TOML file: `[odds]` gives groups relative odds, and every `[[kind]]` table names files that become
actors in the way of that kind; its words are the fields of the kind's dataclass.

    animated     files with meshes, skins, morph targets and animations (`glb_actors.Animated`)
    skeletons    files with an animated skeleton and no mesh: limbs are put around the bones (`glb_actors.Animated`)
    mocap        motion capture (`mocap.MocapEntry`)
    simulated    nothing is read: cloth and soft bodies are simulated (`simulated.Batch`)
"""

import dataclasses
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from diffusion4d.config import BuildPack
from diffusion4d.data.actors import Actor, Motion
from diffusion4d.data.pack import write_actor, write_odds
from diffusion4d.errors import UserError

Table = TypeVar("Table")
Made = Iterator[tuple[Actor, list[Motion]]]


def run(config: BuildPack, progress: Callable[[str], None] | None = None) -> list[Path]:
    """Build all actors of the recipe, or of some kinds; returns their files. An actor replaces one of its name.

    Raises:
        UserError: no such recipe or sources, or a recipe with unknown words; says what was required.
        ValueError: a source cannot be read.
    """
    if not config.sources.is_dir():
        raise UserError(f"need a folder of sources, got {config.sources}")
    recipe = read_recipe(config.recipe)
    if unknown := sorted(set(config.only) - set(_KINDS)):
        raise UserError(f"need kinds of {sorted(_KINDS)}, got {unknown}")
    write_odds(config.out, recipe.get("odds", {}))
    written: list[Path] = []
    for kind, make in _KINDS.items():
        if config.only and kind not in config.only:
            continue
        for table in recipe.get(kind, []):
            for actor, motions in make(table, config.sources):
                written.append(write_actor(config.out, actor, motions))
                if progress:
                    progress(actor.name)
    return written


def read_recipe(path: Path) -> dict[str, Any]:
    """The tables of a recipe.

    Raises:
        UserError: not a TOML file, or a kind that does not exist.
    """
    try:
        recipe = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"need a recipe in TOML, got {path}: {error}") from error
    if unknown := sorted(set(recipe) - set(_KINDS) - {"odds"}):
        raise UserError(f"need tables of {sorted(_KINDS)} or odds, got {unknown} in {path}")
    return recipe


def parsed(kind: type[Table], table: dict[str, Any]) -> Table:
    """A recipe's table as a value of that dataclass.

    Raises:
        UserError: words that the kind has not, or lacks.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in table.items()}
    if unknown := sorted(set(given) - known):
        raise UserError(f"need words of {sorted(known)} in a recipe's table, got {unknown}")
    try:
        return kind(**given)
    except TypeError as error:
        raise UserError(f"need more words in a recipe's table {table}: {error}") from error


def _animated(table: dict[str, Any], sources: Path) -> Made:
    from diffusion4d.data.glb_actors import Animated, mesh_actors

    return mesh_actors(sources, parsed(Animated, table))


def _skeletons(table: dict[str, Any], sources: Path) -> Made:
    from diffusion4d.data.glb_actors import Animated, skeleton_actors

    return skeleton_actors(sources, parsed(Animated, table))


def _mocap(table: dict[str, Any], sources: Path) -> Made:
    from diffusion4d.data.mocap import MocapEntry, mocap_actors

    return mocap_actors(sources, [parsed(MocapEntry, table)])


def _simulated(table: dict[str, Any], sources: Path) -> Made:
    from diffusion4d.data.simulated import simulated_actors

    return simulated_actors([table])


_KINDS: dict[str, Callable[[dict[str, Any], Path], Made]] = {
    "animated": _animated,
    "skeletons": _skeletons,
    "mocap": _mocap,
    "simulated": _simulated,
}
