"""Numbers that are too small are named as on the command line."""

import dataclasses
import math

import pytest

from diffusion4d.bounds import require_at_least
from diffusion4d.config import Train
from diffusion4d.errors import UserError


def test_what_is_large_enough_passes():
    require_at_least(Train(), {"optimisation.batch": 1, "solver_steps": 1, "seed": 0})


@pytest.mark.parametrize("number", [0, -3, math.nan, math.inf])
def test_a_number_that_will_not_do_is_named(number):
    config = dataclasses.replace(Train(), tail=float(number))
    with pytest.raises(UserError, match=f"need --tail of at least 1, got {number:g}"):
        require_at_least(config, {"optimisation.steps": 1, "tail": 1})


def test_all_numbers_of_a_tuple_are_looked_at():
    with pytest.raises(UserError, match="need --solver-steps of at least 1, got 0"):
        require_at_least(Train(solver_steps=(2, 0, 1)), {"solver_steps": 1})
