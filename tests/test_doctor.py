"""The doctor says what is there, what is missing and what to do, also on a broken installation."""

import importlib.metadata
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from diffusion4d import doctor
from diffusion4d.doctor import Check, Report, Section


def check(report: Report, name: str) -> Check:
    return next(c for s in report.sections for c in s.checks if c.name == name)


@pytest.fixture
def fake_version(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], None]:
    """Pretend that a distribution has another version, or is not installed at all (None)."""
    genuine = importlib.metadata.version

    def pretend(name: str, version: str | None) -> None:
        def answer(asked: str) -> str:
            if asked != name:
                return genuine(asked)
            if version is None:
                raise importlib.metadata.PackageNotFoundError(asked)
            return version

        monkeypatch.setattr(importlib.metadata, "version", answer)

    return pretend


def test_main_job_can_run_here() -> None:
    report = doctor.run()
    assert report.problems == ()
    assert report.exit_status == 0
    assert check(report, "Python").found.startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")


def test_every_dependency_has_a_line() -> None:
    report = doctor.run()
    (section,) = (s for s in report.sections if s.title == "Dependencies")
    declared = {
        line.partition(">")[0]
        for line in importlib.metadata.requires("diffusion4d") or []
        if "extra ==" not in line
    }
    assert {c.name for c in section.checks} == declared


@pytest.mark.parametrize(
    ("version", "found"), [(None, "missing, needs >=0.8"), ("0.7.9", "0.7.9, needs >=0.8")]
)
def test_missing_or_old_dependency(fake_version, version: str | None, found: str) -> None:
    fake_version("einops", version)
    report = doctor.run()
    wanted = Check("einops", found, "problem", "pip install 'einops>=0.8'")
    assert check(report, "einops") == wanted
    assert wanted in report.problems
    assert report.exit_status == 1


def test_missing_extra_is_only_a_note(fake_version) -> None:
    fake_version("nbclient", None)
    report = doctor.run()
    assert check(report, "notebooks").found == "lacks nbclient"
    assert check(report, "notebooks").verdict == "note"


def test_broken_torch_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    report = doctor.run()
    assert check(report, "torch").verdict == "problem"
    assert "Files" in [s.title for s in report.sections]


def test_not_installed(fake_version, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    fake_version("diffusion4d", None)
    monkeypatch.setattr(importlib.metadata, "requires", absent)
    monkeypatch.setattr(importlib.metadata, "metadata", absent)
    report = doctor.run()
    assert check(report, "diffusion4d").verdict == "problem"
    assert check(report, "diffusion4d").found.startswith("not installed; imported from")


def test_xformers_needs_cuda(fake_version) -> None:
    fake_version("xformers", None)
    assert doctor._xformers(cuda=True).found == "not installed; optional, for CUDA"
    fake_version("xformers", "0.0.35")
    assert doctor._xformers(cuda=True) == Check("attention: xformers", "0.0.35")
    assert "refused" in doctor._xformers(cuda=False).found
    assert doctor._xformers(cuda=False).verdict == "note"


def weight_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"width": 4}))
    tensors = {"a": np.zeros((5, 5), np.float32), "b": np.ones(3, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_weights_are_opened(tmp_path: Path) -> None:
    folder = weight_folder(tmp_path / "net")
    assert doctor._weight_folder("net", folder) == Check("net", "2 tensors, 0.0 MB")


def test_truncated_weights(tmp_path: Path) -> None:
    folder = weight_folder(tmp_path / "net")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    result = doctor._weight_folder("net", folder)
    assert result.verdict == "problem"
    assert result.found.startswith("model.safetensors: ")


def test_damaged_configuration(tmp_path: Path) -> None:
    folder = weight_folder(tmp_path / "net")
    (folder / "config.json").write_text('{"width": ')
    result = doctor._weight_folder("net", folder)
    assert result.verdict == "problem"
    assert result.found.startswith("config.json: ")


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    assert doctor._weight_folder("net", tmp_path / "net").verdict == "problem"


def test_feature_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION4D_CACHE", "off")
    off = Check("feature cache", "switched off by DIFFUSION4D_CACHE", "note")
    assert doctor._feature_cache() == off
    monkeypatch.setenv("DIFFUSION4D_CACHE", str(tmp_path))
    tokens = tmp_path / "tokens"
    empty = Check("feature cache", f"0 frames, 0.0 MB in {tokens}")
    assert doctor._feature_cache() == empty
    tokens.mkdir()
    (tokens / "a.safetensors").write_bytes(bytes(1_500_000))
    assert doctor._feature_cache() == Check("feature cache", f"1 frames, 1.5 MB in {tokens}")


@pytest.mark.parametrize(
    ("verdict", "last", "status"),
    [
        ("note", "The main job can run here.", 0),
        ("problem", "The main job cannot run here: torch.", 1),
    ],
)
def test_printed_report(verdict: doctor.Verdict, last: str, status: int) -> None:
    report = Report((Section("Torch", (Check("torch", "gone", verdict, "pip install torch"),)),))
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(report)
    lines = [line.strip() for line in console.export_text().splitlines() if line.strip()]
    assert [line.split()[-1] for line in lines[:3]] == ["Torch", "gone", "torch"]
    assert lines[-1] == last
    assert report.exit_status == status


def test_installed_xformers_is_seen() -> None:
    xformers = pytest.importorskip("xformers", reason="the xformers extra is not installed")
    assert check(doctor.run(), "attention: xformers").found.startswith(xformers.__version__)
