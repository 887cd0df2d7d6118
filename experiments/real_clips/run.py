"""The main job on every video of a folder: time, memory, reprojection, spread seen and hidden.

    python experiments/real_clips/run.py VIDEOS [--out out/real-clips]

Each clip is one `diffusion4d sample` in a process of its own, start-up and export included; peak memory is the
operating system's word on that process. The feature cache is off, so that a second run is as slow
as the first.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from diffusion4d.atomic import replace_when_done

VIDEO_SUFFIXES = {".mp4", ".mov", ".gif", ".webm", ".mkv", ".avi"}
HERE = Path(__file__).parent


def sample(video: Path, out: Path, options: list[str]) -> dict:
    """Run the command; returns its summary with seconds and peak GiB of the whole process."""
    command = [sys.executable, "-m", "diffusion4d", "sample", str(video), "-o", str(out), *options]
    environment = {**os.environ, "DIFFUSION4D_CACHE": "off"}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    summary = json.loads((out / "summary.json").read_text())
    # Linux counts kilobytes, macOS bytes.
    peak = usage.ru_maxrss * (1024 if sys.platform.startswith("linux") else 1)
    return {**row(summary), "seconds": round(seconds, 1), "peak_gib": round(peak / 2**30, 2)}


def row(summary: dict) -> dict:
    """What the table shows of a summary."""
    lateral, depth = summary["spread"]["lateral"], summary["spread"]["depth"]
    return {
        "seen_share": round(summary["observed"]["seen_share"], 3),
        "reprojection_px": round(summary["reprojection"]["median_px"], 3),
        "lateral_seen": lateral["seen"]["median"],
        "lateral_hidden": lateral["hidden"]["median"],
        "lateral_all": lateral["all"]["median"],
        "depth_all": depth["all"]["median"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("videos", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/real-clips"))
    arguments, options = parser.parse_known_args()
    videos = sorted(p for p in arguments.videos.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    results = {}
    for video in videos:
        results[video.stem] = sample(video, arguments.out / video.stem, options)
        print(video.stem, results[video.stem], flush=True)
    with replace_when_done(HERE / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
