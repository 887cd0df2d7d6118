"""The tables of the README, from results.json and cost.json; they go between their marks.

python experiments/fields/report.py
"""

import json
from pathlib import Path

import numpy as np

from diffusion4d.evaluation.report import fill

HERE = Path(__file__).parent
TITLES = {
    "additive": "additive",
    "linear": "linear blend with rotations",
    "dual_quaternion": "dual quaternions",
    "flow": "neural flow",
}
WAYS = {
    "stream linear": "streamed, linear blend",
    "stream additive": "streamed, additive",
    "stream dual_quaternion": "streamed, dual quaternions",
    "everything linear": "everything at once, linear blend",
    "loop linear": "plain loop over vertices and nodes (extrapolated)",
}


def quality(rows: list[dict]) -> str:
    """Means over animations of every field; of all that have it."""
    lines = [
        "| field | error % | 95th percentile % | carried drift, own | true | framed drift, true | stretch "
        "| fold-over % | s | to prepare s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        found = [r["fields"][name] for r in rows if name in r["fields"]]
        if not found:
            continue
        mean = {key: float(np.mean([f[key] for f in found])) for key in found[0]}
        lines.append(
            f"| {title} | {mean['error']:.2f} | {mean['error95']:.2f} | {mean['carried_own']:.3f} | "
            f"{mean['carried_true']:.3f} | {mean['framed_true']:.3f} | {mean['stretch']:.3f} | "
            f"{100 * mean['fold_over']:.2f} | {mean['seconds']:.3f} | {mean['prepared']:.1f} |"
        )
    stretch = np.mean([r["true_stretch"] for r in rows])
    fold = 100 * np.mean([r["true_fold_over"] for r in rows])
    lines.append(f"| the true surface | 0 | 0 | | | 0 | {stretch:.3f} | {fold:.2f} | | |")
    return "\n".join(lines)


def each(rows: list[dict]) -> str:
    """Error and drift of linear blending, species by species."""
    lines = [
        "| species | animation | vertices | additive error % | linear error % | additive drift | linear drift | ratio "
        "| flow error % (at nodes) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        add, lin, flow = (r["fields"].get(k) for k in ("additive", "linear", "flow"))
        own = f"{flow['error']:.2f} ({flow['node_error']:.2f})" if flow else ""
        lines.append(
            f"| {r['species']} | {r['animation']} | {r['vertices']:,} | {add['error']:.2f} | {lin['error']:.2f} | "
            f"{add['carried_own']:.3f} | {lin['carried_own']:.3f} | "
            f"{lin['carried_own'] / add['carried_own']:.2f} | {own} |"
        )
    return "\n".join(lines)


def costs(ways: dict[str, dict]) -> str:
    """Seconds and memory, and how many times the streamed linear blend's."""
    base = ways["stream linear"]
    lines = ["| way | s | times | peak MiB |", "|---|---|---|---|"]
    for name, title in WAYS.items():
        row = ways[name]
        peak = f"{row['peak_mib']:,.0f}" if "peak_mib" in row else ""
        ratio = row["seconds"] / base["seconds"]
        lines.append(f"| {title} | {row['seconds']:,.1f} | {ratio:,.1f} | {peak} |")
    lines.append(
        f"| nothing but imports and the case | | | {ways['nothing linear']['peak_mib']:,.0f} |"
    )
    return "\n".join(lines)


def main() -> None:
    rows = json.loads((HERE / "results.json").read_text())["bodies"]
    ways = json.loads((HERE / "cost.json").read_text())["ways"]
    hardest = [r for r in rows if "flow" in r["fields"]]
    readme = HERE / "README.md"
    filled = fill(
        readme.read_text(),
        {
            "all": quality(
                [
                    {**r, "fields": {k: v for k, v in r["fields"].items() if k != "flow"}}
                    for r in rows
                ]
            ),
            "hardest": quality(hardest),
            "each": each(rows),
            "cost": costs(ways),
        },
    )
    readme.write_text(filled)


if __name__ == "__main__":
    main()
