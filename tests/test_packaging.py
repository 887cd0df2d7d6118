"""What is shipped, what is declared, what an import costs, and whose `samplers` it finds."""

import ast
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diffusion4d

ROOT = Path(__file__).parents[1]
PACKAGES = ("diffusion4d", "samplers", "priors")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "cv2", "av", "matplotlib", "scipy")

# Distributions that the code uses without importing them by name.
IMPORTED_BY_OTHERS = {
    "tensorboard": "torch.utils.tensorboard writes with it",
    "xformers": "diffusers' attention dispatcher calls it",
}


def python(*args: str, path: Path | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """A fresh interpreter that sees the installation, and before it the folder `path`."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-P", *args]
    return subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def source_files(root: Path) -> set[str]:
    """Everything that lies in the three packages and is not a cache."""
    found = (p for package in PACKAGES for p in (root / package).rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix() for p in found if "__pycache__" not in p.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, beside neighbours that must stay out of it."""
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for neighbour in ("samplers_old", "tests", "experiments", "notebooks", "docs"):
        (source / neighbour).mkdir()
        (source / neighbour / "__init__.py").touch()
    built = tmp_path_factory.mktemp("built")
    result = python(
        "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", str(built), str(source),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else of ours."""
    target = tmp_path_factory.mktemp("installed")
    result = python(
        "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)
    )
    assert result.returncode == 0, result.stderr
    return target


def test_wheel_ships_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = f"diffusion4d-{PROJECT['version']}.dist-info/"
    assert {n for n in names if not n.startswith(metadata)} == source_files(ROOT)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert metadata + "licenses/LICENSE" in names


def test_wheel_works_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = "import diffusion4d, samplers, priors; print(*(m.__file__ for m in " + (
        "(diffusion4d, samplers, priors)), sep='\\n')"
    )
    result = python("-c", where, path=installed, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [Path(f).parents[1] for f in result.stdout.split()] == [installed] * 3


def test_import_costs_nothing_heavy() -> None:
    code = "import sys, diffusion4d, diffusion4d.doctor; print(*sys.modules)"
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert set(HEAVY) & set(result.stdout.split()) == set()


def test_help_costs_nothing_heavy() -> None:
    code = (
        "import sys, atexit; sys.argv = ['diffusion4d', '--help']\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        "from diffusion4d.cli import main\n"
        "sys.exit(main())"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    text, loaded = result.stdout.split("LOADED")
    assert "sample" in text
    assert "doctor" in text
    assert set(HEAVY) & set(loaded.split()) == set()


def test_every_public_name_resolves() -> None:
    assert [n for n in diffusion4d.__all__ if getattr(diffusion4d, n, None) is None] == []
    assert set(diffusion4d.__all__) <= set(dir(diffusion4d))
    assert diffusion4d.__version__ == PROJECT["version"]
    with pytest.raises(AttributeError, match="no attribute 'Diffusion5D'"):
        _ = diffusion4d.Diffusion5D  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["samplers", "priors"])
def test_foreign_package_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    file = tmp_path / name / "__init__.py"
    file.touch()
    result = python("-c", "import diffusion4d", path=tmp_path)
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith(f"ImportError: diffusion4d needs its own package `{name}`, but ")
    assert str(file) in message


def test_folder_without_init_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_samplers").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=re.escape(str(tmp_path / "some_samplers"))):
        diffusion4d._check_distribution("some_samplers")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "samplers", None)
    with pytest.raises(ImportError, match="`samplers`, and none is installed"):
        diffusion4d._check_distribution("samplers")


def test_broken_package_shows_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_samplers.py").write_text("import surely_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        diffusion4d._check_distribution("broken_samplers")


def imported_modules(folder: str) -> Iterator[str]:
    """Top-level names of every absolute import in a folder, inside functions too."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield str(node.module).partition(".")[0]


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = map(Requirement, lines)
    return {canonicalize_name(r.name): r for r in parsed if r.name != "diffusion4d"}


def distributions(modules: set[str]) -> dict[str, set[str]]:
    """The distributions that each third-party module may come from."""
    homes = importlib.metadata.packages_distributions()
    # Tests and experiments import the modules beside them.
    beside = {p.stem for folder in ("tests", "experiments") for p in (ROOT / folder).rglob("*.py")}
    local = {*PACKAGES, *sys.stdlib_module_names, *beside}
    return {m: {canonicalize_name(d) for d in homes.get(m, [m])} for m in modules - local}


def test_declared_is_what_is_imported() -> None:
    """Nothing is imported that an installation may lack; nothing is installed without a use."""
    extras = PROJECT["optional-dependencies"]
    used = chain(*(extras[name] for name in ("train", "lora", "xformers", "triton")))
    declared = set(requirements([*PROJECT["dependencies"], *used]))
    imported = distributions({m for package in PACKAGES for m in imported_modules(package)})
    assert {m for m, names in imported.items() if not names & declared} == set()
    assert declared - set().union(*imported.values()) == set(IMPORTED_BY_OTHERS)


def reached(module: str, seen: dict[str, set[str]]) -> None:
    """Into `seen`: our modules that this one imports, however far, and what each imports of others."""
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if module in seen or not path.is_file():
        return
    seen[module] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            # What is imported from a package may be a module of it.
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.partition(".")[0] in PACKAGES:
                reached(name, seen)
            else:
                seen[module].add(name.partition(".")[0])


def test_what_is_done_with_hypotheses_takes_no_extra_of_training() -> None:
    seen: dict[str, set[str]] = {}
    for module in ("animate", "export.command", "export.modes", "viewer.command"):
        reached(f"diffusion4d.{module}", seen)
        assert f"diffusion4d.{module}" in seen
    training = set(requirements(PROJECT["optional-dependencies"]["train"]))
    training -= set(requirements(PROJECT["dependencies"]))
    imported = distributions(set().union(*seen.values()))
    lacking = {m for m, homes in imported.items() if homes & training}
    assert {name: found & lacking for name, found in seen.items() if found & lacking} == {}


@pytest.mark.parametrize("folder", ["tests", "experiments", "notebooks"])
def test_what_is_not_shipped_imports_only_what_is_declared(folder: str) -> None:
    lines = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    imported = distributions(set(imported_modules(folder)))
    assert {m for m, names in imported.items() if not names & set(requirements(lines))} == set()


def test_pins_are_within_the_declared_ranges() -> None:
    pins = requirements(
        [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    )
    assert {str(r.specifier)[:2] for r in pins.values()} == {"=="}
    extras = PROJECT["optional-dependencies"]
    tested = [
        line for name in ("train", "notebooks", "lora", "test", "check") for line in extras[name]
    ]
    for name, requirement in requirements([*PROJECT["dependencies"], *tested]).items():
        version = str(pins[name].specifier)[2:]
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


def test_layers() -> None:
    """`samplers` and `priors` know neither each other nor what is above them."""
    name = "lint-imports.exe" if os.name == "nt" else "lint-imports"
    command = shutil.which(name, path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("import-linter (the check extra) is not installed")
    result = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
