"""The peer setting: Bézier pieces that share their ends, white noise, four Euler steps on the straight path."""

import dataclasses

import numpy as np
import pytest
import scipy.interpolate
import torch
from models import simple_worlds, small_pipeline
from observed import M, seeded, some_evidence, some_network

from diffusion4d import denoiser, objectives, sampling, splines, train
from diffusion4d.config import Dropout, Network, Optimisation, Train
from diffusion4d.errors import UserError
from diffusion4d.evaluation.cases import Case, world_clips
from diffusion4d.evaluation.methods import Model, Models
from diffusion4d.metrics import CALIBRATION_DRAWS
from diffusion4d.noise import PointNoise
from diffusion4d.observation import Given, observe
from diffusion4d.pipeline import Diffusion4DPipeline
from diffusion4d.scenes.batches import draw

F64 = torch.float64
PEER = Network(
    num_ctrl=7, width=32, depth=1, num_heads=1, token_channels=0, multiplicity=3, path="rectified"
)


def test_ten_control_points_are_three_bezier_pieces():
    knots = splines.knot_vector(10, 3, 3)
    assert knots.tolist() == [0] * 4 + [1 / 3] * 3 + [2 / 3] * 3 + [1] * 4
    u = torch.linspace(0, 1, 31, dtype=F64)
    basis = splines.basis_matrix(u, 10, multiplicity=3)
    expected = scipy.interpolate.BSpline.design_matrix(u.numpy(), knots.numpy(), 3).toarray()
    np.testing.assert_allclose(basis.numpy(), expected, atol=1e-12)
    ctrl = torch.randn((10, 2), generator=seeded(), dtype=F64)
    # The middle piece is the Bézier curve of its four control points.
    inside = (u >= 1 / 3) & (u <= 2 / 3)
    piece = splines.de_casteljau(ctrl[3:7], 3 * u[inside] - 1)
    torch.testing.assert_close((basis @ ctrl)[inside], piece)
    assert torch.equal((basis @ ctrl)[[0, -1]], ctrl[[0, -1]])


def test_a_fit_finds_bezier_pieces_and_their_corners():
    u = torch.linspace(0, 1, 31, dtype=F64)
    ctrl = torch.randn((4, 10, 2), generator=seeded(), dtype=F64)
    points = splines.basis_matrix(u, 10, multiplicity=3) @ ctrl
    torch.testing.assert_close(splines.fit(points, u, 10, multiplicity=3), ctrl)
    # The usual splines are smooth where these have corners.
    smooth = splines.basis_matrix(u, 10) @ splines.fit(points, u, 10)
    assert (smooth - points).abs().max() > 0.1
    # A gap is crossed in a straight line by either.
    weights = torch.ones(31, dtype=F64)
    weights[5:20] = 0
    line = torch.stack([u, -2 * u], -1)
    crossed = splines.fit(
        line, u, 10, weights=weights, multiplicity=3, ridge=1e-6, penalty_order=1, prior=None
    )
    assert (splines.basis_matrix(u, 10, multiplicity=3) @ crossed - line).abs().max() < 0.05


@pytest.mark.parametrize(("num_ctrl", "multiplicity"), [(9, 3), (10, 4), (10, 0)])
def test_knots_that_do_not_divide_are_refused(num_ctrl, multiplicity):
    with pytest.raises(ValueError, match=f"to be a multiple of it, got {multiplicity}"):
        splines.knot_vector(num_ctrl, 3, multiplicity)


def test_on_the_straight_path_the_target_does_not_depend_on_time():
    network = some_network(trained=False, path="rectified").float()
    x = torch.full((600, 4, M, 3), 3.0)
    evidence = some_evidence(600, 4, dtype=torch.float32)
    for power in (1.0, 0.3):
        loss = objectives.velocity_loss(
            network, evidence, x, seeded(), anchor=None, noisy_power=power
        )
        # E |eps - 3|^2; the cosine path has 1 at t = 0 and 9 at t = 1.
        assert loss.item() == pytest.approx(10, rel=0.02)


def test_a_denoiser_on_the_straight_path():
    network = some_network(path="rectified").float()
    clip = denoiser.prepare(network, some_evidence(dtype=torch.float32, tokens=True))
    x_t = torch.randn((1, 2, 6, M, 3), generator=seeded())
    t = torch.tensor(0.25)
    velocity = clip.velocity(x_t, t)
    expected = (x_t - 0.25 * velocity).clamp(-denoiser.LIMIT, denoiser.LIMIT)
    torch.testing.assert_close(clip.denoise(x_t, t), expected)
    assert sampling.usual(network) == ("euler", 4)
    schedule, kind = denoiser.path_of(network)
    assert kind == "flow_prediction"
    # One Euler step from t = 1 to 0 is the denoiser's answer.
    table = sampling.table_for("euler", 1, schedule)
    assert (table.a.tolist(), table.b.tolist()) == ([0], [1])
    # Half of the way keeps half of the noise.
    table = sampling.table_for("euler", 2, schedule)
    assert table.a.tolist() == [0.5, 0]
    assert table.b.tolist() == [0.5, 1]


def test_a_peer_is_built_trained_and_evaluated(tmp_path):
    worlds = simple_worlds(8)
    config = Train(
        objective="velocity",
        network=PEER,
        optimisation=Optimisation(points=12),
        dropout=Dropout(tracks=0.0),
    )
    network = train.build(config, worlds, None)
    assert network.config["noise"] is None
    assert denoiser.noise_of(network) == PointNoise.white(7)
    example = draw(
        worlds,
        seeded(),
        num_ctrl=7,
        num_points=12,
        dropout=config.dropout,
        multiplicity=3,
        augment=False,
    )
    basis = splines.basis_matrix(example.u, 7, multiplicity=3)
    assert (basis @ example.ctrl - example.points).abs().max() < 0.02
    loss = train.Objective(config, network, None)(example, seeded())
    loss.backward()
    assert network.project_out.weight.grad is not None
    pipe = Diffusion4DPipeline(network.eval())
    pipe.save_pretrained(tmp_path)
    again = Diffusion4DPipeline.from_pretrained(tmp_path)
    assert again.transformer.config["path"] == "rectified"
    case = Case.of(next(world_clips(worlds, 12)), 0)
    model = Model(again, None)
    assert model.multiplicity == 3
    with torch.no_grad():
        clip = model.prepared(case, None)
        straight, _ = denoiser.path_of(again.transformer)
        table = sampling.table_for("euler", 4, straight)
        seeds = sampling.seeds_from(case.seed, CALIBRATION_DRAWS)
        ctrl = sampling.sample(clip, seeds, table)
        points = case.trajectories(ctrl, 3)
        sampler = Model(small_pipeline("anchored"), None)
        models = Models(sampler, {}, model, 1, (), "ancestral", "fp32")
        answers = models.samples(case, {}, swept=False)
    torch.testing.assert_close(answers["peer setting"], points)
    # On its tracks, in its own basis.
    seen = case.clip.visibility > 0.5
    off = (case.project(points) - case.clip.tracks).norm(dim=-1)[:, seen]
    assert off.median() < 1.0
    tracks = torch.full((9, 4, 2), 8.0)
    observation = observe(Given(tracks=tracks, size=(48, 64)))
    with pytest.raises(UserError, match=r"can be evaluated \(--peer\), not used"):
        again.sample(observation)


def test_other_networks_are_as_they_were():
    config = dataclasses.asdict(Network())
    assert (config["multiplicity"], config["path"]) == (1, "cosine")
    network = some_network()
    assert denoiser.path_of(network)[0] == denoiser.SCHEDULE
    assert sampling.usual(network) == ("ancestral", sampling.NUM_STEPS)
