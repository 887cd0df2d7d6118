"""The benchmark's ways of decoding do the same work: they agree, and an exponent is what it should be."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments" / "bench"))

import decoders
import decoding


@pytest.mark.parametrize("what", decoders.DECODERS)
def test_all_agree(what: str) -> None:
    job = decoders.work(5, 6, 8, 30)
    answers = {who: decoder(job) for who, decoder in decoders.DECODERS[what].items()}
    for answer in answers.values():
        for found, expected in zip(_parts(answer), _parts(answers["scipy"]), strict=True):
            assert found.shape == expected.shape
            torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-4)


def _parts(answer: object) -> list[torch.Tensor]:
    return [torch.as_tensor(part) for part in (answer if isinstance(answer, tuple) else (answer,))]


def test_exponent_of_a_power_law() -> None:
    curve = [{"size": (n, 1, 1, 1), "seconds": 1e-3 + 2 * n**1.5} for n in (1, 4, 16, 64, 256)]
    assert decoding.exponent(curve, 0) == pytest.approx(1.5, abs=0.01)
