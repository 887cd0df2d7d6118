"""Scores on clips with truth: samples, deterministic answers bare and dressed with noise, and older baselines.

`run` reads the clips (generated worlds, rendered ones, or a folder), asks every method, and writes scores.json,
scores.md and pictures. `metrics` defines every number; `cases` says what a method is told, `methods` asks it, `scores`
and `summary` make the table, `report` and `plots` show it.
"""

from diffusion4d.evaluation.command import run
from diffusion4d.evaluation.report import markdown

__all__ = ["markdown", "run"]
