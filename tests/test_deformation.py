"""Modes and clusters of hypotheses that were made of known ones; their files; the command."""

import dataclasses
import json

import numpy as np
import pygltflib
import pytest
import torch
from fans import fan
from PIL import Image

from diffusion4d import Hypotheses, cli, deformation
from diffusion4d.deformation import Deformation, shape_modes
from diffusion4d.errors import UserError
from diffusion4d.export.glb import glb
from diffusion4d.export.mode_picture import DPI, picture
from diffusion4d.export.modes import FILES, report, swing_names, write_modes
from diffusion4d.splines import BSpline

K = 24


def ensemble(gap: float = 0.0, noise: float = 0.01) -> Hypotheses:
    """Motions whose depth is scaled as a whole, and whose odd points sway; `gap` parts the scales into two groups."""
    hyp = fan(K, 10)
    rng = torch.Generator().manual_seed(0)
    base = hyp.control_points.mean(0)
    scale = 0.2 * torch.randn((K, 1, 1, 1), generator=rng)
    scale[: K // 3] += gap
    depth = scale + noise * torch.randn((K, *base.shape[:2], 1), generator=rng)
    side = 0.1 * torch.randn((K, 1, 1), generator=rng) * (torch.arange(10) % 2)[:, None]
    side = side + noise * torch.randn((K, *base.shape[:2]), generator=rng)
    away = base[..., 2:] * depth.exp()
    across = base[..., :2] / base[..., 2:]
    across = torch.stack(
        [across[..., 0] + side, across[..., 1] + noise * torch.randn(side.shape, generator=rng)], -1
    )
    return dataclasses.replace(
        hyp, control_points=torch.cat([across * away, away], -1), seeds=torch.arange(K)
    )


@pytest.fixture(scope="module")
def found() -> Deformation:
    return deformation.modes(ensemble())


@pytest.fixture(scope="module")
def parted() -> Deformation:
    return deformation.modes(ensemble(gap=3.0))


def test_the_two_modes_that_were_put_in_are_found(found):
    hyp = found.hypotheses
    assert found.num_modes == 2
    # White in control points is not white in the metric: those at the ends count for less.
    assert found.modes.noise == "coloured"
    # Depth is common to all points; the sway is of half of them, and across the ray.
    assert found.depth_share().tolist() == pytest.approx([1, 0], abs=0.02)
    assert found.common_share().tolist() == pytest.approx([1, 0.5], abs=0.03)
    assert found.clusters.count == 1
    # Scores of 1 change the depth of every point by a factor of e, up to the sign.
    deviation = found.modes.scores[:, 0].std()
    logs = hyp.control_points[..., 2].log().mean((1, 2))
    assert deviation.item() == pytest.approx(logs.std().item(), rel=0.02)


def test_the_metric_is_the_integral_over_the_clip(found):
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    paths = BSpline(found.directions, found.hypotheses.knots).evaluate(u)
    squared = paths.square().sum(-1).mean((1, 2))
    torch.testing.assert_close(squared, torch.ones(2).double(), rtol=1e-4, atol=0)


def test_scores_give_the_hypotheses_back_up_to_the_noise(found):
    hyp = found.hypotheses
    rest = found.at(found.modes.scores).control_points - hyp.control_points
    # The noise is 0.01 of depths of about 1.
    assert rest.square().mean().sqrt().item() == pytest.approx(0.01, rel=0.2)
    swung = found.swing(2.0)
    assert swung.num_hypotheses == 5
    assert (swung.control_points[..., 2] > 0).all()
    logs = swung.control_points[:3, ..., 2].log()
    # The mean lies half-way between the two swings, in the coordinates of the camera.
    torch.testing.assert_close(logs[0], (logs[1] + logs[2]) / 2, atol=1e-4, rtol=0)
    assert found.swing(2.0, most=1).num_hypotheses == 3


def test_groups_are_found_and_represented(parted):
    found = parted
    assert found.clusters.count == 2
    assert found.clusters.weights.tolist() == pytest.approx([2 / 3, 1 / 3])
    few = found.representatives
    assert few.seeds.tolist() == found.clusters.representatives.tolist()
    near, far = few.control_points[..., 2].median(-1).values.median(-1).values.tolist()
    assert far > 5 * near


def test_shapes_over_time():
    hyp = fan(1, 9, 20)
    found = shape_modes(hyp, 0, noise="white")
    # Points on circles: two coordinates of one turning disc.
    assert found.directions.shape[1:] == (9, 3)
    rebuilt = found.at(found.scores)
    truth = hyp.evaluate()[0].transpose(0, 1).double()
    assert (rebuilt - truth).norm() < 0.2 * (truth - truth.mean(0)).norm()


def test_what_is_refused():
    with pytest.raises(UserError, match="at least 5 hypotheses to find modes, got 4"):
        deformation.modes(fan(4))
    with pytest.raises(UserError, match="at least 9 hypotheses to find modes, got 6"):
        deformation.modes(fan(6), noise="coloured")
    behind = fan(6)
    behind = dataclasses.replace(behind, control_points=-behind.control_points)
    with pytest.raises(UserError, match="in front of the camera, got 252 that are not"):
        deformation.modes(behind)


def test_the_files_hold_what_they_say(tmp_path, parted):
    found = parted
    files = write_modes(found, tmp_path / "new", seconds=2.0)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(FILES)
    with np.load(files["modes.npz"], allow_pickle=False) as held:
        view = held["mean"] + np.tensordot(held["scores"], held["directions"], 1)
        depth = np.exp(view[..., 2:])
        points = np.concatenate([view[..., :2] * depth, depth], -1)
        again = found.at(found.modes.scores).control_points
        np.testing.assert_allclose(points, again.numpy(), rtol=1e-6)
        assert held["weights"].sum() == pytest.approx(1)
        assert len(held["values"]) == K - 1
    document = pygltflib.GLTF2.load_from_bytes(files["modes.glb"].read_bytes())
    assert document is not None
    names = [node.name for node in document.nodes]
    assert {"mean", "mode_1_minus", "mode_1_plus", "mode_2_plus", "mean_point_003"} <= set(names)
    told = json.loads(files["modes.json"].read_text())
    assert told == report(found)
    assert told["modes"] == len(told["of_each_mode"]) == 2
    assert told["clusters"]["weights"] == pytest.approx([2 / 3, 1 / 3], abs=1e-4)
    with Image.open(files["modes.png"]) as image:
        assert image.size == (16 * DPI, round(10.6 * DPI))
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # Both swings and the threshold are there.
    for ink in ((230, 159, 0), (86, 180, 233)):
        assert (np.abs(pixels - ink).max(-1) < 12).sum() > 300
    with pytest.raises(UserError, match="need 24 names, got 1"):
        glb(found.hypotheses, seconds=1.0, names=["alone"])
    assert swing_names(3) == ["mean", "mode_1_minus", "mode_1_plus"]


@pytest.mark.parametrize("case", ["nothing", "exact", "few"])
def test_the_picture_of_a_corner_case(case):
    hyp = ensemble()
    noise = "white" if case == "few" else "auto"
    if case == "nothing":
        hyp = dataclasses.replace(hyp, control_points=hyp.control_points[:1].expand(K, -1, -1, -1))
    if case == "exact":
        ctrl = hyp.control_points[:1] * torch.linspace(1, 2, K)[:, None, None, None]
        hyp = dataclasses.replace(hyp, control_points=ctrl)
    if case == "few":
        hyp = hyp.select(torch.arange(5))
    found = deformation.modes(hyp, noise=noise)
    picture(found).canvas.draw()
    json.dumps(report(found), allow_nan=False)


def test_the_command(tmp_path, capfd):
    ensemble().save(tmp_path)
    assert cli.run(["modes", str(tmp_path), "--noise", "coloured"]) == 0
    said = capfd.readouterr()
    assert "modes: 2, out of coloured noise" in said.out
    assert str(tmp_path / "modes.glb") in said.out
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*FILES, "hypotheses.npz"])


def test_the_command_swings_for_as_long_as_the_clip_lasts(tmp_path):
    ensemble().save(tmp_path)
    (tmp_path / "summary.json").write_text('{"hypotheses": {"seconds": 0.8}}')
    assert cli.run(["modes", str(tmp_path), "--noise", "coloured"]) == 0
    document = pygltflib.GLTF2.load_from_bytes((tmp_path / "modes.glb").read_bytes())
    assert document is not None
    keys = document.accessors[document.animations[0].samplers[0].input]
    assert keys.max[0] == pytest.approx(0.8)


def test_few_hypotheses_are_not_said_to_have_been_tested(tmp_path, capfd):
    """Seven values of eight hypotheses: three modes are where the search ends, whatever the noise is."""
    hyp = fan(8, 10)
    rng = torch.Generator().manual_seed(1)
    # Four ways to differ, far above the noise: half the spectrum is fewer.
    ways = torch.randn((4, *hyp.control_points.shape[1:]), generator=rng)
    shares = torch.randn((8, 4), generator=rng)
    moved = hyp.control_points.mean(0) + 0.01 * torch.tensordot(shares, ways, 1)
    moved += 1e-5 * torch.randn(moved.shape, generator=rng)
    dataclasses.replace(hyp, control_points=moved).save(tmp_path)
    assert cli.run(["modes", str(tmp_path)]) == 0
    said = capfd.readouterr().out
    assert "modes: at least 3; 8 hypotheses: too few to test the noise\n" in said
    told = json.loads((tmp_path / "modes.json").read_text())
    assert told["white_law"]["at_least"]


def test_a_count_says_what_it_is_worth(found):
    assert found.verdict == "2, out of coloured noise"
    # Of noise that is not white the white law takes too much for modes.
    white = deformation.modes(ensemble(), noise="white")
    assert white.verdict.startswith(f"{white.num_modes}, out of white noise")
    assert ("does not look white" in white.verdict) == (not white.modes.spectrum.holds)


@pytest.mark.parametrize("case", ["missing", "few", "level", "seconds", "out"])
def test_the_command_refuses_in_one_line(tmp_path, capfd, case):
    folder = tmp_path / "given"
    (fan(3) if case == "few" else ensemble()).save(folder)
    arguments = {
        "missing": [str(tmp_path / "none")],
        "few": [str(folder)],
        "level": [str(folder), "--level", "2"],
        "seconds": [str(folder), "--seconds", "-1"],
        "out": [str(folder), "-o", str(folder / "hypotheses.npz")],
    }[case]
    assert cli.run(["modes", *arguments]) == 2
    said = capfd.readouterr().err
    wanted = {
        "missing": "no hypotheses at", "few": "got 3", "level": "strictly between 0 and 1",
        "seconds": "got -1", "out": "cannot write results to",
    }[case]  # fmt: skip
    assert wanted in said
    assert len(said.strip().splitlines()) == 1
    assert [p.name for p in folder.iterdir()] == ["hypotheses.npz"]
