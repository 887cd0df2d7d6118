r"""Build a pack from folders of public sources, by a recipe.

A recipe is a TOML file: `[odds]` gives groups relative odds, and every `[[kind]]` table names files that become
actors in the way of that kind; its words are the fields of the kind's dataclass.

    animated     files with meshes, skins, morph targets and animations (`glb_actors.Animated`)
    skeletons    files with an animated skeleton and no mesh: limbs are put around the bones (`glb_actors.Animated`)
    mocap        motion capture (`mocap.MocapEntry`)
    simulated    nothing is read: cloth and soft bodies are simulated (`simulated.Batch`)
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffusion4d.config import BuildPack
from diffusion4d.data.actors import Actor, Motion
from diffusion4d.data.glb_actors import Animated, mesh_actors, skeleton_actors
from diffusion4d.data.mocap import MocapEntry, mocap_actors
from diffusion4d.data.pack import others, write_actor, write_odds
from diffusion4d.data.recipe import KINDS, parsed, read_recipe
from diffusion4d.data.simulated import read_batches, simulated_actors
from diffusion4d.errors import UserError


def run(config: BuildPack, progress: Callable[[str], None] | None = None) -> list[Path]:
    """Build all actors of the recipe, or of some kinds; returns their files. An actor replaces one of its name.

    The whole recipe is checked before anything is written. When all is written, other actors are removed from the
    folder, lest one that is held out now stays in it as one to train on. With `only` they stay, since another
    process may have built them; those that no table of the recipe could make are told.

    Raises:
        UserError: no such recipe or sources, or a recipe that breaks the rules; says what was required.
        ValueError: a source cannot be read.
    """
    if not config.sources.is_dir():
        raise UserError(f"need a folder of sources, got {config.sources}")
    if unknown := sorted(set(config.only) - set(KINDS)):
        raise UserError(f"need kinds of {sorted(KINDS)}, got {unknown}")
    recipe = read_recipe(config.recipe)
    tables = read_tables(recipe)
    kinds = [kind for kind in KINDS if tables[kind] and kind in (config.only or KINDS)]
    if not kinds:
        raise UserError(f"need tables of {config.only or KINDS}, got none in {config.recipe}")
    tell = progress or (lambda _: None)
    written: dict[str, Path] = {}
    for kind in kinds:
        for table in tables[kind]:
            for actor, motions in _made(kind, table, config.sources):
                if actor.name in written:
                    raise UserError(f"need actors of different names, got {actor.name!r} twice")
                written[actor.name] = write_actor(config.out, actor, motions)
                tell(actor.name)
    if not written:
        raise UserError(f"need tables that make actors, got none in {config.recipe}")
    write_odds(config.out, recipe["odds"])
    for path in others(config.out, written):
        if not config.only:
            path.unlink()
            tell(f"{path.stem} removed: the recipe does not make it")
        elif not any(table.may_make(path.stem) for of in tables.values() for table in of):
            tell(f"{path.stem} stays, but no table of the recipe makes it")
    return list(written.values())


def read_tables(recipe: dict[str, Any]) -> dict[str, list[Any]]:
    """The tables of every kind as values of its dataclass.

    Raises:
        UserError: words that a kind does not take.
        ValueError: simulations that would leak from one split into another.
    """
    classes = {"animated": Animated, "skeletons": Animated, "mocap": MocapEntry}
    tables: dict[str, list[Any]] = {
        kind: [parsed(of, table) for table in recipe.get(kind, [])] for kind, of in classes.items()
    }
    return tables | {"simulated": read_batches(recipe.get("simulated", []))}


def _made(kind: str, table: Any, sources: Path) -> Iterator[tuple[Actor, list[Motion]]]:
    match kind:
        case "animated":
            return mesh_actors(sources, table)
        case "skeletons":
            return skeleton_actors(sources, table)
        case "mocap":
            return mocap_actors(sources, [table])
        case _:
            return simulated_actors([table])
