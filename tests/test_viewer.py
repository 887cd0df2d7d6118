"""The viewer: what the page computes is what Python does; in a real browser it loads, plays, picks, keeps and saves."""

import base64
import http.client
import itertools
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import chromium, visit
from fans import fan

from diffusion4d.animate import chosen
from diffusion4d.cli import run as command
from diffusion4d.clip import read_clip
from diffusion4d.errors import UserError
from diffusion4d.export.recorded import length, reading
from diffusion4d.export.report import report, write_report
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.viewer.content import PATH_INSTANTS, as_json, content
from diffusion4d.viewer.page import page, write_page
from diffusion4d.viewer.serve import HOST, save_choice, server

needs_browser = pytest.mark.skipif(chromium() is None, reason="needs Chromium")

# What a user would do, by the page's own controls; what came of it is left in the document.
PROBE = """
<script>
window.addEventListener("load", () => {
  const wait = () => {
    if (!window.viewer) return setTimeout(wait, 20);
    const { state, motion, scene, draw } = window.viewer, told = {};
    const act = (id, value, kind) => {
      const part = document.getElementById(id);
      if (part.type === "checkbox") part.checked = value; else part.value = value;
      part.dispatchEvent(new Event(kind));
    };
    const lit = () => {
      draw();
      const { width, height } = scene.canvas, gl = scene.gl, pixels = new Uint8Array(width * height * 4);
      gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
      let sum = 0;
      for (let i = 0; i < pixels.length; i += 4)
        sum = (sum * 31 + pixels[i] + 7 * pixels[i + 1] + 3 * pixels[i + 2]) % 1000003;
      return sum;
    };
    // Far enough away that the camera is in sight, too.
    scene.distance *= 3;
    told.start = lit(); told.startPlace = [...motion.place(1, 2, state.s, [0, 0, 0])];
    act("time", "1000", "input");
    told.end = lit(); told.endPlace = [...motion.place(1, 2, state.s, [0, 0, 0])];
    told.clock = document.getElementById("clock").textContent;
    told.views = {};
    for (const show of ["all", "mean", "0"]) { act("show", show, "change"); told.views[show] = lit(); }
    act("show", "all", "change");
    told.colours = {};
    for (const colour of ["hypothesis", "point", "spread", "visibility", "speed"]) {
      act("colour", colour, "change"); told.colours[colour] = lit();
    }
    act("trails", false, "change"); told.withoutTrails = lit();
    act("frustum", false, "change"); told.withoutCamera = lit();
    window.viewer.pick(2); told.fan = document.getElementById("fanTitle").textContent;
    told.mean = [...motion.mean.slice(0, 6)]; told.project = motion.project(1, 2, 3);
    told.band = motion.bands(2, 0, [...state.kept], [0.05, 0.5]).map((row) => row[row.length - 1]);
    document.querySelector("#list input").click();
    told.kept = document.getElementById("kept").textContent;
    document.getElementById("save").click();
    setTimeout(() => {
      told.saved = document.getElementById("saved").textContent;
      const out = document.createElement("pre");
      out.id = "told"; out.textContent = JSON.stringify(told); document.body.append(out);
    }, 300);
  };
  wait();
});
</script>
"""


def _numbers(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def _told(document: str) -> dict:
    found = re.search(r'<pre id="told">(.*?)</pre>', document, re.DOTALL)
    assert found is not None, document[-2000:]
    return json.loads(found.group(1))


def _clip(hyp: Hypotheses):
    frames = torch.randint(0, 255, (hyp.num_frames, 3, *hyp.size), dtype=torch.uint8)
    return read_clip(frames)


def test_the_page_holds_the_motions() -> None:
    hyp = fan(9, 6, 12)
    value = content(hyp, _clip(hyp), title="a <b>")
    control = _numbers(value["control"]).reshape(9, 6, hyp.num_ctrl, 3)
    basis = _numbers(value["basis"]).reshape(value["S"], hyp.num_ctrl)
    paths = np.einsum("sm,knma->knsa", basis, control)
    np.testing.assert_allclose(paths[:, :, ::PATH_INSTANTS], hyp.evaluate().numpy(), atol=1e-5)
    assert value["rank"] == hyp.rank().tolist()
    assert len(value["frames"]) == 12
    assert sorted(np.unique(value["clusters"]["labels"])) == list(
        range(len(value["clusters"]["weights"]))
    )
    assert content(fan(3))["clusters"] is None
    assert content(fan(3))["seconds"][-1] == pytest.approx(11 / 30, abs=1e-5)
    with pytest.raises(UserError, match="need the clip with the 12 frames"):
        content(hyp, _clip(fan(2, 6, 8)))
    with pytest.raises(UserError, match="200 x 128 px or in proportion, got one of 128 x 128"):
        content(hyp, read_clip(torch.zeros(12, 3, 128, 128, dtype=torch.uint8)))


def test_nothing_in_the_data_ends_the_script() -> None:
    text = as_json({"title": "</script><script>alert(1)</script><!--\u2028"})
    assert "<" not in text
    assert json.loads(text)["title"] == "</script><script>alert(1)</script><!--\u2028"
    html = page(content(fan(2), title="</script><b>"))
    assert html.count("</script>") == 2
    assert "http" not in html.replace("http-equiv", "")


def _act(url: str, folder: Path, hyp: Hypotheses) -> dict:
    document, console = visit(url, folder)
    assert console == []
    told = _told(document)
    at_start, at_end = (hyp.evaluate([u])[1, 2, 0].tolist() for u in (0.0, 1.0))
    assert told["startPlace"] == pytest.approx(at_start, abs=1e-5)
    assert told["endPlace"] == pytest.approx(at_end, abs=1e-5)
    assert told["start"] != told["end"]
    assert told["clock"].endswith("frame 12 / 12")
    assert len(set(told["views"].values())) == 3
    assert len(set(told["colours"].values())) == 5
    assert len({told["colours"]["speed"], told["withoutTrails"], told["withoutCamera"]}) == 3
    assert told["fan"].startswith("point 2: median, 50 % and 90 % of 4")
    np.testing.assert_allclose(told["mean"][:3], hyp.mean[0, 0], atol=1e-5)
    np.testing.assert_allclose(told["project"], hyp.project()[1, 2, 3], atol=1e-2)
    last = hyp.quantiles([0.05, 0.5])[:, 2, -1, 0]
    np.testing.assert_allclose(told["band"], last, atol=1e-5)
    assert told["kept"] == "3 of 4 kept"
    return told


@needs_browser
def test_the_file_works_in_a_browser(tmp_path: Path) -> None:
    hyp = fan(4, 6, 12)
    path = write_page(content(hyp, _clip(hyp)), tmp_path / "view.html")
    path.write_text(path.read_text("utf-8").replace("</body>", PROBE + "</body>"), "utf-8")
    told = _act(path.as_uri(), tmp_path, hyp)
    assert told["saved"] == "choice.json handed to the browser"


@needs_browser
def test_the_served_page_saves_the_choice(tmp_path: Path) -> None:
    hyp = fan(4, 6, 12)
    html = page(content(hyp), can_save=True).replace("</body>", PROBE + "</body>")
    running = server(html, lambda body: save_choice(hyp, body, tmp_path))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        told = _act(f"http://{HOST}:{running.server_address[1]}/", tmp_path, hyp)
    finally:
        running.shutdown()
        running.server_close()
    assert told["saved"].startswith("3 of 4 kept")
    assert json.loads((tmp_path / "choice.json").read_text())["kept"] == [1, 2, 3]
    assert torch.equal(Hypotheses.load(tmp_path / "kept").control_points, hyp.control_points[1:])


LAYOUT = """
<script>
window.addEventListener("load", () => {
  const wait = () => {
    if (!window.viewer) return setTimeout(wait, 20);
    const told = { width: innerWidth }, save = document.getElementById("save");
    for (const id of ["stage", "heading", "legend", "hint", "save", "play"]) {
      const { left, top, right, bottom } = document.getElementById(id).getBoundingClientRect();
      told[id] = [left, top, right, bottom];
    }
    const aside = document.querySelector("aside").getBoundingClientRect();
    told.aside = [aside.left, aside.top, aside.right, aside.bottom];
    told.open = save.disabled;
    document.getElementById("none").click(); told.none = save.disabled; save.click();
    told.saved = document.getElementById("saved").textContent;
    document.querySelector("#list input").click(); told.one = save.disabled;
    const out = document.createElement("pre");
    out.id = "told"; out.textContent = JSON.stringify(told); document.body.append(out);
  };
  wait();
});
</script>
"""


@needs_browser
@pytest.mark.parametrize("width", [500, 900, 1280])
def test_nothing_lies_on_top_of_another_and_a_choice_of_none_is_not_saved(
    tmp_path: Path, width: int
) -> None:
    path = write_page(content(fan(4, 6, 12), title="a clip"), tmp_path / "view.html")
    path.write_text(path.read_text("utf-8").replace("</body>", LAYOUT + "</body>"), "utf-8")
    document, console = visit(path.as_uri(), tmp_path, f"--window-size={width},800")
    assert console == []
    told = _told(document)
    assert told["width"] == width
    for one, other in itertools.combinations(("heading", "legend", "hint"), 2):
        (a, b, c, d), (left, top, right, bottom) = told[one], told[other]
        assert c <= left or right <= a or d <= top or bottom <= b, (one, other)
    # Nor does the row of the clock cover what is above it.
    for name in ("stage", "aside"):
        assert told[name][3] <= told["play"][1]
    assert (told["open"], told["none"], told["one"]) == (False, True, False)
    assert told["saved"] == ""


@needs_browser
def test_a_picture_of_it_is_not_empty(tmp_path: Path) -> None:
    from PIL import Image

    path = write_page(content(fan(4, 6, 12)), tmp_path / "view.html")
    visit(path.as_uri(), tmp_path, f"--screenshot={tmp_path / 'view.png'}")
    picture = np.asarray(Image.open(tmp_path / "view.png").convert("RGB"))
    # Warm and cool hypotheses are both there, beside text and panels.
    red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
    assert (red - blue > 80).sum() > 50
    assert (blue - red > 80).sum() > 50


def test_a_page_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fan(2).save(tmp_path)
    (tmp_path / "page").mkdir()
    (tmp_path / "file").write_text("mine")
    before = sorted(p.name for p in tmp_path.iterdir())
    for place, said in (
        ("page", f"need a file to write, got a folder at {tmp_path / 'page'}"),
        ("file/view.html", f"cannot write {tmp_path / 'file' / 'view.html'}: File exists"),
    ):
        assert command(["view", str(tmp_path), "--html", str(tmp_path / place)]) == 2
        assert capsys.readouterr().err == f"diffusion4d: {said}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_choice_is_checked(tmp_path: Path) -> None:
    hyp = fan(3)
    for body in (b"", b"[]", b'{"kept": "0"}', b'{"kept": [true]}', b'{"kept": [0.5]}'):
        with pytest.raises(UserError, match="need JSON such as"):
            save_choice(hyp, body, tmp_path)
    for body in (b'{"kept": []}', b'{"kept": [3]}', b'{"kept": [-1]}'):
        with pytest.raises(UserError, match="at least one hypothesis out of 0 … 2"):
            save_choice(hyp, body, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_has_the_clock_of_the_clip(tmp_path: Path) -> None:
    hyp = fan(4, 6, 12)
    source = {"video": "a.mp4", "start": 1.5, "stride": 2}
    told = report(
        hyp,
        seconds=0.8 * hyp.times.numpy(),
        assumptions={"source": source},
        timings={"sampling": 3.0},
    )
    write_report(told, tmp_path / "summary.json")
    save_choice(hyp, b'{"kept": [3, 1]}', tmp_path)
    folder = tmp_path / "kept"
    kept = Hypotheses.load(folder)
    assert length(kept, source=folder) == pytest.approx(0.8)
    assert reading(folder) == source
    own = json.loads((folder / "summary.json").read_text())
    assert own["assumed"]["kept"] == {"numbers": [1, 3], "of": 4}
    assert own["hypotheses"] | {"K": 4} == told["hypotheses"] | {
        "seeds": [11, 13],
        "rank": kept.rank().tolist(),
    }
    assert own["reprojection"]["median_px_per_hypothesis"] == [
        told["reprojection"]["median_px_per_hypothesis"][k] for k in (1, 3)
    ]
    assert own["timings_s"] == {}


def test_the_commands_take_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hyp = fan(4, 6, 12)
    hyp.save(tmp_path)
    arguments = ["export", str(tmp_path), "--formats", "tapip3d", "--hypotheses", "kept"]
    assert command(arguments) == 2
    assert f"need {tmp_path / 'choice.json'} for the kept" in capsys.readouterr().err
    save_choice(hyp, b'{"kept": [3, 1]}', tmp_path)
    assert not (tmp_path / "kept" / "summary.json").exists()
    assert command(arguments) == 0
    names = [p.name for p in sorted((tmp_path / "tapip3d").iterdir())]
    assert names == ["hypothesis_01.npz", "hypothesis_03.npz"]
    assert chosen("kept", hyp, tmp_path / "hypotheses.npz") == [1, 3]
    # As the page that is a file hands it out.
    (tmp_path / "choice.json").write_text('{"kept": [2], "rejected": [0, 1, 3]}')
    assert chosen("kept", hyp, tmp_path) == [2]
    # Of hypotheses that were sampled before these.
    (tmp_path / "choice.json").write_text('{"kept": [2], "seeds": [7]}')
    assert command(arguments) == 2
    assert "of seeds [12], got one of [7]" in capsys.readouterr().err


def test_the_server_answers_for_its_page_alone(tmp_path: Path) -> None:
    running = server("<p>page</p>", lambda body: save_choice(fan(2), body, tmp_path))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        ask = http.client.HTTPConnection(HOST, running.server_address[1], timeout=10)
        json_type = {"Content-Type": "application/json"}
        for method, path, body, headers, status in (
            ("GET", "/", None, {}, 200),
            ("GET", "/../etc/passwd", None, {}, 404),
            ("GET", "/", None, {"Host": "elsewhere.example"}, 403),
            ("POST", "/choice", b'{"kept": [0]}', {**json_type, "Host": "elsewhere.example"}, 400),
            ("POST", "/choice", b'{"kept": [0]}', {"Content-Type": "text/plain"}, 400),
            ("POST", "/other", b'{"kept": [0]}', json_type, 400),
            ("POST", "/choice", b"no json", json_type, 400),
            ("POST", "/choice", b'{"kept": [0]}', json_type, 200),
        ):
            ask.request(method, path, body, headers)
            answer = ask.getresponse()
            answer.read()
            assert answer.status == status, (method, path, body)
        with pytest.raises(UserError, match="need a free port"):
            server("", lambda _: "", running.server_address[1])
    finally:
        running.shutdown()
        running.server_close()


def test_the_command_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fan(2).save(tmp_path)
    assert command(["view", str(tmp_path), "--html", str(tmp_path / "sub" / "view.html")]) == 0
    assert "<canvas" in (tmp_path / "sub" / "view.html").read_text("utf-8")
    # summary.json may name a video that is gone.
    told = {
        "assumed": {"source": {"video": str(tmp_path / "gone.mp4"), "start": 0.0}},
        "hypotheses": {"seconds": 0.8},
    }
    (tmp_path / "summary.json").write_text(json.dumps(told))
    assert command(["view", str(tmp_path), "--html", str(tmp_path / "view.html")]) == 0
    assert "without the video: " in capsys.readouterr().out
    assert re.search(r'"seconds":\[0.0,[^]]*,0.8]', (tmp_path / "view.html").read_text("utf-8"))
    assert command(["view", str(tmp_path), "--video", "gone.mp4", "--html", "x.html"]) == 2
    assert command(["view", str(tmp_path / "nothing")]) == 2
    assert "no hypotheses at" in capsys.readouterr().err
