r"""A pack's recipe: a TOML file whose tables become values of dataclasses, by the types of their fields."""

import dataclasses
import math
import tomllib
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from diffusion4d.data.pack import positive_odds
from diffusion4d.errors import UserError

KINDS = ("animated", "skeletons", "mocap", "simulated")
Table = TypeVar("Table")


def read_recipe(path: Path) -> dict[str, Any]:
    """The tables of a recipe, a list for every kind that it has, and its odds.

    Raises:
        UserError: not a TOML file, a kind that does not exist, or something else than tables and odds.
    """
    try:
        recipe = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"need a recipe in TOML, got {path}: {error}") from error
    if unknown := sorted(set(recipe) - set(KINDS) - {"odds"}):
        raise UserError(f"need tables of {sorted(KINDS)} or odds, got {unknown} in {path}")
    for kind in set(recipe) - {"odds"}:
        tables = recipe[kind]
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise UserError(f"need tables [[{kind}]], got {kind} = {tables} in {path}")
    try:
        recipe["odds"] = positive_odds(recipe.get("odds", {}))
    except ValueError as error:
        raise UserError(f"{error} in {path}") from error
    return recipe


def parsed(kind: type[Table], table: dict[str, Any]) -> Table:
    """A recipe's table as a value of that dataclass.

    Raises:
        UserError: words that the kind has not, or lacks, or with values that it does not take.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    if unknown := sorted(set(table) - known):
        raise UserError(f"need words of {sorted(known)} in a recipe's table, got {unknown}")
    types = get_type_hints(kind)
    for name, value in table.items():
        if not _is(value, types[name]):
            raise UserError(
                f"need {_said(types[name])} for {name} in a recipe's table, got {value!r}"
            )
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in table.items()}
    given = {name: float(v) if types[name] is float else v for name, v in given.items()}
    try:
        return kind(**given)
    except TypeError as error:
        raise UserError(f"need more words in a recipe's table {table}: {error}") from error
    except ValueError as error:
        raise UserError(f"{error} in a recipe's table {table}") from error


def _is(value: Any, kind: Any) -> bool:
    """Whether a value of TOML can be one of that type; lists are for tuples, integers do for floats."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in of
    if origin in (Union, UnionType):
        return any(_is(value, one) for one in of)
    if origin is tuple:
        if not isinstance(value, list):
            return False
        of = of[:1] * len(value) if of[-1] is ... else of
        return len(value) == len(of) and all(map(_is, value, of))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _said(kind: Any) -> str:
    """A type in words."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, of))
    if origin in (Union, UnionType):
        return " or ".join(_said(one) for one in of if one is not NoneType)
    if origin is tuple:
        return f"a list [{', '.join('…' if one is ... else _said(one) for one in of)}]"
    words = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    return words[kind]


def positive(**words: float | int) -> None:
    """ValueError unless these words of a table are positive and finite."""
    if wrong := {name: value for name, value in words.items() if not 0 < value < math.inf}:
        raise ValueError(f"need positive finite numbers, got {wrong}")


def found(sources: Path, pattern: str) -> list[Path]:
    """Files that match, in order of their names.

    Raises:
        ValueError: there are none, or the pattern is none.
    """
    try:
        paths = sorted(path for path in sources.glob(pattern) if path.is_file())
    except (ValueError, NotImplementedError) as error:
        raise ValueError(
            f"need a pattern of files within {sources}, got {pattern!r}: {error}"
        ) from error
    if not paths:
        raise ValueError(f"need files {pattern!r} in {sources}, got none")
    return paths
