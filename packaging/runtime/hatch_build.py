"""Selects the files of the wheel: those of the package that `[tool.hatch.build.hooks.custom]` does not leave out."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "metalad"


class RuntimeFiles(BuildHookInterface[Any]):
    """Puts files of another folder than the project's into the wheel, which patterns of hatchling cannot do."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files."""
        del version
        patterns = self.config["leave-out"]
        for path in sorted(PACKAGE.rglob("*")):
            name = path.relative_to(PACKAGE).as_posix()
            if path.is_file() and "__pycache__" not in name and not any(fnmatch(name, pattern) for pattern in patterns):
                build_data["force_include"][str(path)] = f"metalad/{name}"
