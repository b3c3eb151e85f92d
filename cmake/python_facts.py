"""Prints what CMake needs to know of this Python and its packages, one NAME=value a line.

torch is located, not imported: importing it takes seconds. A missing or too old package ends the
script with one sentence on standard error.
"""

import importlib.metadata
import importlib.util
import platform
import re
import sys
import sysconfig
from pathlib import Path

OLDEST_TORCH = (2, 11)


def package_root(name: str) -> Path:
    """Folder of the installed package, or exits with the sentence that the user needs."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(
            f"the package {name} is not installed for {sys.executable}; run 'pip install {name}' "
            "first (builds with --no-build-isolation use the packages of the environment)."
        )
    return Path(spec.origin).parent


def torch_version() -> str:
    """Version of the installed torch, checked to be new enough for the stable ABI in use."""
    version = importlib.metadata.version("torch")
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_TORCH:
        sys.exit(
            f"torch {version} is installed for {sys.executable}; torch 2.11 or newer is needed."
        )
    return version


def python_include() -> str:
    """Folder of Python.h, or exits with the sentence that the user needs."""
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").exists():
        sys.exit(
            f"Python.h was not found in {include}; install the development headers of "
            f"Python {platform.python_version()} (Debian and Ubuntu: python3-dev)."
        )
    return include


def main() -> None:
    """Prints all facts."""
    facts = {
        "TORCH_ROOT": package_root("torch"),
        "TORCH_VERSION": torch_version(),
        "PYBIND11_INCLUDE": package_root("pybind11") / "include",
        "PYTHON_INCLUDE": python_include(),
        "EXT_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
        "PYTHON_VERSION": platform.python_version(),
    }
    for name, value in facts.items():
        print(f"{name}={value}")


if __name__ == "__main__":
    main()
