"""Builds the native modules of llmjp_ext by driving CMake; all metadata is in pyproject.toml.

Environment: LLMJP_CUDA=ON|OFF|AUTO, TORCH_CUDA_ARCH_LIST, MAX_JOBS, LLMJP_TESTS=ON (also builds
what the tests use), CXX, CUDACXX, CUDA_HOME. The CMake tree stays in build/<python tag>, so that a
second build compiles only what changed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
GIBIBYTE = 1 << 30
SENTENCE = "llmjp_ext: "  # before the one line in which cmake/ says why it stops


def parallel_jobs() -> int:
    """MAX_JOBS, or as many compilers as there are cores and 2 GiB of memory for each."""
    requested = os.environ.get("MAX_JOBS", "")
    if requested:
        if not requested.isdigit() or int(requested) < 1:
            raise CompileError(f"MAX_JOBS must be a positive integer, got {requested!r}.")
        return int(requested)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // (2 * GIBIBYTE)))


class CMakeBuild(build_ext):
    """Configures, builds and installs the CMake component "package" into the llmjp_ext folder."""

    def run(self) -> None:
        """Builds into the source folder for editable and in-place builds, else into build_lib."""
        in_place = self.inplace or self.editable_mode
        destination = (
            ROOT / "llmjp_ext" if in_place else Path(self.build_lib).resolve() / "llmjp_ext"
        )
        cmake = self.require("cmake")
        tree = ROOT / "build" / str(sys.implementation.cache_tag)
        jobs = parallel_jobs()
        print(
            f"llmjp_ext: building in {tree} with {jobs} parallel jobs (MAX_JOBS)",
            flush=True,
        )
        self.cmake([cmake, "-S", str(ROOT), "-B", str(tree), *self.options()], "configuring")
        self.cmake([cmake, "--build", str(tree), "--parallel", str(jobs)], "compiling")
        self.cmake(
            [cmake, "--install", str(tree), "--prefix", str(destination), "--component", "package"],
            "installing",
        )

    def options(self) -> list[str]:
        """What CMake is told: every value each time, since the tree outlives environments."""
        ninja = self.require("ninja")
        environment = os.environ
        return [
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DLLMJP_PYTHON={sys.executable}",
            f"-DLLMJP_CUDA={environment.get('LLMJP_CUDA') or 'AUTO'}",
            f"-DTORCH_CUDA_ARCH_LIST={environment.get('TORCH_CUDA_ARCH_LIST', '')}",
            f"-DLLMJP_TESTS={environment.get('LLMJP_TESTS') or 'OFF'}",
        ]

    @staticmethod
    def require(program: str) -> str:
        """Path of a build program: beside this Python (a venv need not be activated) or on PATH."""
        places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        found = shutil.which(program, path=os.pathsep.join(places))
        if found is None:
            raise CompileError(f"{program} was not found; run 'pip install {program}'.")
        return found

    @staticmethod
    def cmake(command: list[str], action: str) -> None:
        """Runs one CMake step; a failure repeats the sentence that cmake/ printed, if it did."""
        reason = f"{action} the native modules failed; the compiler's message stands above."
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith(SENTENCE):
                reason = line.removeprefix(SENTENCE).strip()
        if process.wait() != 0:
            raise CompileError(reason)

    def get_outputs(self) -> list[str]:
        """Files that an install records: those that the CMake install step put into build_lib."""
        if self.inplace or self.editable_mode:
            return []
        return [str(path) for path in (Path(self.build_lib) / "llmjp_ext").glob("*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing to link: an editable install finds the libraries in the source folder."""
        return {}


setup(
    ext_modules=[Extension("llmjp_ext._ops", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
