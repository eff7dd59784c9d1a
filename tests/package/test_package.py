"""The package as people install it: a wheel with every file it needs, used where the checkout cannot be imported."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import pytest

from pipelines.shards import reader
from rg import __version__
from rg.runs.environment import ROOT
from tests.support import miniature_run


def installed(package, least=0):
    """Whether a package is there, in that major version or a later one."""
    try:
        return int(importlib.metadata.version(package).partition(".")[0]) >= least
    except importlib.metadata.PackageNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    not (installed("build") and installed("pip") and installed("setuptools", 77)),
    reason="building needs build, pip and setuptools 77",
)
PACKAGES = ("kernels", "pipelines", "rg")
DESCRIPTION = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")


def packaged(folder):
    """Every file of the packages in a checkout."""
    files = (path for package in PACKAGES for path in (folder / package).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in files if "__pycache__" not in path.parts}


def build(source, out, *options):
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def content(wheel):
    """Digest of every file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The sdist, and the wheel built from it, of a copy without what earlier builds left behind."""
    folder = tmp_path_factory.mktemp("package")
    for name in DESCRIPTION:
        shutil.copy(ROOT / name, folder)
    for name in (*PACKAGES, "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    build(folder, folder / "dist")
    build(folder, folder / "direct", "--wheel")
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = (dist / "dist").glob("*.whl")
    return path


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    files = {name for name in content(wheel) if f"region_grouping-{__version__}.dist-info" not in name}
    assert files == packaged(ROOT)


def test_the_sdist_holds_the_packages_and_what_describes_them(dist):
    (path,) = (dist / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in files if ".egg-info/" not in name} == packaged(ROOT) | set(DESCRIPTION) | made


def test_the_wheel_of_the_sdist_is_that_of_the_checkout(dist, wheel):
    (direct,) = (dist / "direct").glob("*.whl")
    assert direct.name == wheel.name
    assert content(direct) == content(wheel)


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Variables under which ``python -S`` finds the installed wheel and its dependencies, and not the checkout.

    Without ``site`` no .pth file is read, which is how an editable installation comes to be found.
    """
    target = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(target), *dependencies]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def home(small_birds, tmp_path_factory):
    """A working directory outside the checkout, with a run and a photo."""
    folder = tmp_path_factory.mktemp("home")
    miniature_run.build(folder / "run", small_birds)
    (folder / "bird.jpg").write_bytes(next(iter(reader.read(small_birds, "test"))).jpeg)
    return folder


@pytest.fixture(scope="module")
def call(environment, home):
    def call(*arguments):
        command = [sys.executable, "-S", *map(str, arguments)]
        result = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return call


def test_the_installed_packages_are_those_that_run(call, environment):
    names = (*PACKAGES, "tests", "benchmarks")
    code = f"import importlib.util\nfor name in {names}: print(getattr(importlib.util.find_spec(name), 'origin', None))"
    target = Path(environment["PYTHONPATH"].split(os.pathsep)[0])
    installed = [str(target / package / "__init__.py") for package in PACKAGES]
    assert call("-c", code).split() == [*installed, "None", "None"]


def test_the_installed_program_explains(call, home):
    call("-m", "rg", "explain", "run", "bird.jpg", "--out", "explained", "--device", "cpu")
    assert (home / "explained" / "pictures" / "bird.webp").stat().st_size
    assert "<script>" in (home / "explained" / "gallery.html").read_text()


def test_the_installed_program_compares(call, home):
    call("-m", "rg", "compare", "run", "bird.jpg", "--out", "compared", "--device", "cpu")
    assert "bird" in (home / "compared" / "compare.html").read_text()


def test_the_installed_program_reports(call, home, small_birds):
    call("-m", "rg", "evaluate", "run", "--data", small_birds, "--device", "cpu")
    assert call("-m", "rg", "report", "run").strip() == str(Path("run", "report.html"))
    assert "</html>" in (home / "run" / "report.html").read_text()


@pytest.mark.skipif(not importlib.util.find_spec("uvicorn"), reason="serving needs the extra serve")
def test_the_installed_program_serves_its_page(environment, home):
    command = [sys.executable, "-S", "-m", "rg", "serve", "run", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, cwd=home, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if address := re.match(r"http://\S+", line):
                    break
            else:
                pytest.fail("".join(lines))
            for name, files in {
                "": ("server/page.html",),
                "page.js": ("pages/numbers.js", "pages/choices.js", "server/page.js"),
                "page.css": ("server/page.css",),
            }.items():
                with urllib.request.urlopen(f"{address[0]}/{name}", timeout=30) as answer:
                    assert answer.read() == b"\n".join((ROOT / "rg" / file).read_bytes() for file in files)
        finally:
            server.terminate()
