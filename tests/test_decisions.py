"""Decisions quote the numbers that their experiments' committed results hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent


def decision(name: str) -> str:
    """Its text on one line."""
    return " ".join((ROOT / "docs" / "decisions" / name).read_text().split())


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "experiments" / name / "results.json").read_text())


def short(value: float, digits: int = 3) -> str:
    """.462 for 0.462."""
    return f"{value:.{digits}f}".removeprefix("0") if value else "0"


def test_matching_quotes_its_results() -> None:
    text, found = decision("0009-matching.md"), results("matching")
    scores = found["rendered"]["scores"]
    rows = {
        "tiny, soft attention": "tiny, soft",
        "tiny, Sinkhorn": "tiny, sinkhorn",
        "tiny, mutual neighbours": "tiny, mutual",
        "tiny, epipolar filter": "tiny, epipolar",
        "tiny, votes": "tiny, hough",
        "**tiny, votes, refined**": "tiny, hough, refined",
        "random weights, votes, refined": "random weights, hough, refined",
        "raw pixels, votes, refined": "raw pixels, hough, refined",
        "the same place again": "same place",
    }
    for said, name in rows.items():
        row = scores[name]
        numbers = [
            short(row[f"{subset} pck{px}"][0]) for subset in ("all", "wide") for px in (4, 8)
        ]
        bold = "**" if said.startswith("**") else ""
        assert f"| {said} | " + " | ".join(f"{bold}{n}{bold}" for n in numbers) + " |" in text
    both = scores["tiny, soft"]
    assert (
        f"{found['rendered']['worlds']} rendered worlds of held-out actors, key frames against the first "
        f"({both['all points']:,} cases, {both['wide points']:,} of them moved"
    ) in text
    pairs, anchor = (found["pairs"]["scores"][name] for name in ("all pairs", "anchor"))
    exponent = found["pairs"]["exponent"]
    assert (
        f"All pairs: {short(pairs['all pck4'][0])} / {short(pairs['all pck8'][0])} against the anchor's "
        f"{short(anchor['all pck4'][0])} / {short(anchor['all pck8'][0])} on {found['pairs']['worlds']} worlds, "
        f"CPU time ∝ T^{exponent['all pairs']:.2f} against T^{exponent['anchor']:.2f}."
    ) in text
    for tracker in ("lk", "dino", "sinkhorn", "fused"):
        row = found["full-rate"][tracker]
        right, claimed = short(row["right of claimed"]), short(row["found of visible"])
        assert f"{tracker} {right}, {claimed}" in text


def test_the_world_frame_quotes_its_results() -> None:
    text, found = decision("0011-world-frame.md"), results("world")
    worlds = found["worlds"]
    moving = [w for w in worlds if w["kind"] != "static" and w["ground"] >= 0.15]
    still = [w for w in worlds if w["kind"] == "static" and w["ground"] >= 0.15]
    bare = [w for w in worlds if w["ground"] < 0.15]
    placed = [w for w in moving if w["hypotheses"]["frame"] == "world"]
    turn = {
        source: [w[source].get("rotation") for w in moving if w[source].get("rotation") is not None]
        for source in ("hypotheses", "truth")
    }
    none = [w["none"] for w in moving]

    def mean(name: str) -> str:
        values = [w["hypotheses"][name] for w in moving if w["hypotheses"].get(name) is not None]
        return f"{np.nanmean(values):.3f}"

    def nearer(subset: str) -> int:
        rows = (w["hypotheses"] for w in placed)
        return sum(row[f"world_{subset}"] < row[f"as_world_{subset}"] for row in rows)

    refit = [w["hypotheses"]["refit_px"][0] for w in worlds if w["hypotheses"]["frame"] == "world"]
    for said in (
        f"{len(worlds)} held-out worlds, {len(moving)} with a moving camera",
        f"Rotation error {np.median(turn['hypotheses']):.2f}° in the median ({np.median(none):.2f}° without an "
        f"estimate, {np.median(turn['truth']):.2f}° from true points), "
        f"{np.mean(turn['hypotheses']):.1f}° in the mean ({np.mean(none):.1f}°)",
        f"{sum(w['hypotheses']['still'] for w in still)} of {len(still)} still cameras before ground",
        f"{nearer('all')} of the {len(placed)} worlds that were placed, "
        f"moving ones in {nearer('moving')} of {len(placed)}",
        f"({mean('world_all')} and {mean('as_world_all')}; "
        f"moving points {mean('world_moving')} and {mean('as_world_moving')})",
        f"({mean('corrected_all')} against {mean('camera_all')})",
        f"The refit moves images by {np.median(refit):.2f} px",
        f"{sum(w['hypotheses']['frame'] == 'world' for w in bare)} of {len(bare)} worlds were given a camera",
    ):
        assert said in text, said
