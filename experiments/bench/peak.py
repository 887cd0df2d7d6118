r"""What the pipeline adds to memory, beside what it printed before: one clip, in a process of its own.

    python experiments/bench/peak.py clip.mp4 --hypotheses 1024

It takes the steps of `pipe(video, num_hypotheses=K)` with an ear on the line that says the memory: the peak is reset
there, so tracking and encoding, which that line does not speak of, are told apart. Prints one line of JSON:

    planned, chunk      what was printed: bytes, and hypotheses at a time
    sampled             bytes added at most from then until all are sampled: network, doubts about the tracks, snapping
    grown               bytes added at most from then to the end: placing them in the world, too

Shape letters:  K hypotheses.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated

import torch
import tyro
from timing import Peak

from diffusion4d.memory import MIB
from diffusion4d.observation import Given, observe
from diffusion4d.pipeline import Diffusion4DPipeline, Settings
from diffusion4d.stages import Stages

PRINTED = re.compile(r"memory: at most (\d+) MiB for sampling, (\d+) hypotheses at a time")


@dataclasses.dataclass
class Ear:
    """Hears what is planned and which stage begins, and measures from the one to the other."""

    planned: int = 0
    chunk: int = 0
    sampled: int = 0
    peak: Peak | None = None

    def say(self, line: str) -> None:
        """Take what was printed; lines of other things go by."""
        told = PRINTED.fullmatch(line)
        if told is not None:
            self.planned, self.chunk = int(told[1]) * MIB, int(told[2])
            self.peak = Peak()

    def report(self, stage: str, done: int, total: int) -> None:
        """Take the peak where placing begins, which says 0 done."""
        if stage == "placing" and done == 0 and self.peak is not None:
            self.sampled = self.peak.growth


def peak(
    video: Annotated[Path, tyro.conf.Positional],
    model: str = "tiny",
    hypotheses: int = 1024,
    points: int = 128,
) -> dict[str, int]:
    """Sample K hypotheses of a video, everything else as usual."""
    torch.set_num_threads(1)
    pipe = Diffusion4DPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    ear = Ear()
    stages = Stages(ear.report, ear.say)
    observation = observe(Given(video, num_points=points), 0, stages)
    pipe.sample(observation, Settings(num_hypotheses=hypotheses), stages)
    if ear.peak is None:
        raise RuntimeError("need a pipeline that says its memory before it samples, heard nothing")
    grown = ear.peak.growth
    return {"planned": ear.planned, "chunk": ear.chunk, "sampled": ear.sampled, "grown": grown}


if __name__ == "__main__":
    print(json.dumps(tyro.cli(peak, description=__doc__)))
