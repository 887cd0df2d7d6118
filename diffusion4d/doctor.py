"""What is installed, on which device, with which backend: `diffusion4d doctor`.

Every line of the report is a `Check`: what was looked at, what was found, whether the main job can
run with it, and what to do when it cannot. The doctor has to work on a broken installation, so
nothing outside the standard library is imported at the top, and a failing import becomes a line.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from packaging.markers import Marker
    from rich.console import Console, ConsoleOptions, RenderResult

DISTRIBUTION = "diffusion4d"
PEAK_MEMORY = 2.5 * 2**30
"""Bytes the main job may take at its peak: 48 frames, 128 points, 16 hypotheses."""

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """One line: "ok" works, "note" is worth knowing, "problem" keeps the main job from running."""

    name: str
    found: str
    verdict: Verdict = "ok"
    advice: str = ""


@dataclass(frozen=True)
class Section:
    title: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Report:
    sections: tuple[Section, ...]

    @property
    def problems(self) -> tuple[Check, ...]:
        return tuple(c for s in self.sections for c in s.checks if c.verdict == "problem")

    @property
    def exit_status(self) -> int:
        """0 when the main job can run, 1 otherwise."""
        return 1 if self.problems else 0

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.table import Table
        from rich.text import Text

        marks = {"ok": ("✓", "green"), "note": ("·", "yellow"), "problem": ("✗", "bold red")}
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for section in self.sections:
            table.add_row("", Text(section.title, style="bold"), "")
            for check in section.checks:
                mark, style = marks[check.verdict]
                found = Text(check.found)
                if check.advice:
                    found.append(f"\n{check.advice}", style=style)
                table.add_row(Text(mark, style=style), check.name, found)
            table.add_row("", "", "")
        yield table
        if self.problems:
            names = ", ".join(check.name for check in self.problems)
            yield Text(f"The main job cannot run here: {names}.", style="bold red")
        else:
            yield Text("The main job can run here.", style="bold green")


def run() -> Report:
    """Examine this installation. Never raises on a broken one: what fails becomes a line."""
    return Report(
        (
            Section("Machine", tuple(_machine())),
            Section("Torch", tuple(_torch())),
            Section("Dependencies", tuple(_dependencies(extra=None))),
            Section("Extras", tuple(_extras())),
            Section("Packaged weights", tuple(_weights())),
            Section("Files", (_video_writer(), _feature_cache())),
        )
    )


def main() -> int:
    """Print the report; returns the exit status."""
    from rich.console import Console

    report = run()
    Console().print(report)
    return report.exit_status


def _machine() -> Iterator[Check]:
    yield Check("Python", f"{platform.python_version()} at {sys.executable}")
    try:
        yield Check(DISTRIBUTION, f"{_version(DISTRIBUTION)} at {Path(__file__).parent}")
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            DISTRIBUTION,
            f"not installed; imported from {Path(__file__).parent}",
            "problem",
            "pip install .",
        )
    yield Check("platform", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Check("processor", f"{_usable_cores()} logical cores for this process")
    try:
        import psutil
    except ImportError:
        return
    memory = psutil.virtual_memory()
    found = f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f} GiB"
    if memory.available < PEAK_MEMORY:
        yield Check(
            "memory",
            found,
            "note",
            f"a clip of 48 frames may take {PEAK_MEMORY / 2**30:g} GiB: use fewer points or frames",
        )
    else:
        yield Check("memory", found)


def _usable_cores() -> int:
    # A container or a batch system may give a process fewer cores than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (
        Exception
    ) as error:  # A torch that is broken may fail in any way: OSError, RuntimeError, …
        yield Check("torch", f"cannot be imported: {error}", "problem", "pip install torch")
        return
    build = "CPU build"
    if torch.version.cuda:
        build = f"CUDA {torch.version.cuda} build"
    elif torch.version.hip:
        build = f"ROCm {torch.version.hip} build"
    yield Check("torch", f"{torch.__version__}, {build}")
    yield Check("CPU threads", f"{torch.get_num_threads()}, {_instruction_set()}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
            yield Check(f"cuda:{index}", found)
    elif torch.version.cuda:
        yield Check("cuda", "this torch has CUDA, but no device answers", "note", "runs on the CPU")
    if torch.backends.mps.is_available():
        yield Check("mps", "available")
    yield Check("default device", "cuda" if torch.cuda.is_available() else "cpu")
    yield Check("attention: native", "torch's scaled_dot_product_attention")
    yield _xformers(cuda=torch.cuda.is_available())


def _instruction_set() -> str:
    import torch

    name = torch.backends.cpu.get_cpu_capability()
    # Older torch releases cannot tell.
    if not hasattr(torch.cpu, "get_capabilities"):
        return name
    supported = torch.cpu.get_capabilities()
    if any(supported.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16")):
        return f"{name}, bfloat16 in hardware"
    return f"{name}, bfloat16 is emulated: keep float32"


def _xformers(cuda: bool) -> Check:
    name = "attention: xformers"
    try:
        version = _version("xformers")
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "not installed; optional, for CUDA", "note")
    if not cuda:
        return Check(name, f"{version}, but it needs a CUDA device: refused on this one", "note")
    return Check(name, version)


def _dependencies(extra: str | None) -> Iterator[Check]:
    """Every requirement of ours that applies here: the core's, or one extra's."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Check("packaging", "missing", "problem", "pip install packaging")
        return
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            DISTRIBUTION, "not installed, so it declares nothing", "problem", "pip install ."
        )
        return
    for line in lines:
        requirement = Requirement(line)
        in_core = _applies(requirement.marker, "")
        wanted = in_core if extra is None else not in_core and _applies(requirement.marker, extra)
        # An extra that includes another one of ours names this distribution itself.
        if wanted and requirement.name != DISTRIBUTION:
            yield _dependency(requirement.name, str(requirement.specifier), extra)


def _applies(marker: "Marker | None", extra: str) -> bool:
    return marker is None or marker.evaluate({"extra": extra})


def _dependency(name: str, required: str, extra: str | None) -> Check:
    from packaging.specifiers import SpecifierSet

    verdict: Verdict = "problem" if extra is None else "note"
    advice = f"pip install '{name}{required}'"
    try:
        version = _version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, f"missing, needs {required or 'any version'}", verdict, advice)
    if not SpecifierSet(required).contains(version, prereleases=True):
        return Check(name, f"{version}, needs {required}", verdict, advice)
    return Check(name, f"{version} ({required})" if required else version)


def _extras() -> Iterator[Check]:
    try:
        extras = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for extra in extras:
        checks = list(_dependencies(extra))
        lacking = [check.name for check in checks if check.verdict != "ok"]
        if lacking:
            found = f"lacks {', '.join(lacking)}"
            yield Check(extra, found, "note", f"in a checkout: pip install -e '.[{extra}]'")
        else:
            yield Check(extra, "installed")


def _weights() -> Iterator[Check]:
    """The folders of weights that came with the installation: networks, then encoders."""
    for package, kind in (("diffusion4d", "network"), ("priors", "encoder")):
        module = importlib.import_module(package)
        root = Path(str(module.__file__)).parent / "weights"
        folders = sorted(f for f in root.glob("*") if f.is_dir() and not f.name.startswith("_"))
        if not folders:
            advice = "install diffusion4d again"
            yield Check(f"{kind}s", f"none in {root}", "problem", advice)
        for folder in folders:
            yield _weight_folder(f"{kind} {folder.name}", folder)


def _weight_folder(name: str, folder: Path) -> Check:
    """Is every configuration valid JSON, and does every tensor file open and hold all its bytes?"""
    advice = "install diffusion4d again"
    tensors, size = 0, 0
    for path in sorted(folder.rglob("*")):
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".safetensors":
                tensors += _count_tensors(path)
                size += path.stat().st_size
        except Exception as error:  # safetensors raises an exception class of its own
            return Check(name, f"{path.relative_to(folder)}: {error}", "problem", advice)
    if not tensors:
        return Check(name, f"no tensors in {folder}", "problem", advice)
    return Check(name, f"{tensors} tensors, {size / 1e6:.1f} MB")


def _count_tensors(path: Path) -> int:
    from safetensors import safe_open

    # Opening checks the header and that the file is as long as the header says.
    with safe_open(path, framework="np") as archive:
        return len(list(archive.keys()))


def _video_writer() -> Check:
    advice = "pip install --force-reinstall av: PyPI's wheels bring the encoder"
    try:
        import av.codec

        encoder = av.codec.Codec("h264", "w")
    except (
        Exception
    ) as error:  # av raises classes of its own, and ImportError for a missing library
        return Check("H.264 encoder", f"not available: {error}", "problem", advice)
    return Check("H.264 encoder", f"{encoder.long_name}, PyAV {av.__version__}")


def _feature_cache() -> Check:
    """Tokens of frames seen before. Without a cache everything works, only slower."""
    name = "feature cache"
    try:
        from priors.cache import VARIABLE, FeatureCache
    except ImportError as error:
        return Check(name, f"not available: {error}", "note")
    cache = FeatureCache.default()
    if cache is None:
        return Check(name, f"switched off by {VARIABLE}", "note")
    try:
        sizes = [path.stat().st_size for path in cache.folder.glob("*.safetensors")]
    except OSError as error:
        return Check(name, f"{cache.folder}: {error}", "note")
    # Where the folder does not exist yet, its nearest parent decides.
    existing = next((f for f in (cache.folder, *cache.folder.parents) if f.exists()), cache.folder)
    found = f"{len(sizes)} frames, {sum(sizes) / 1e6:.1f} MB in {cache.folder}"
    if not os.access(existing, os.W_OK):
        return Check(name, f"{found}: not writable", "note", f"set {VARIABLE} to another folder")
    return Check(name, found)


def _version(name: str) -> str:
    return importlib.metadata.version(name)
