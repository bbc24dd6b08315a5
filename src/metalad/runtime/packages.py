"""Packages that only some commands need: the extras of metalad, and what `metalad-runtime` leaves out."""

import importlib
import os
import sys
from collections.abc import Mapping

from metalad.runtime.errors import ConfigError

NOT_IN_RUNTIME = ("metalad", "torch", "scipy", "matplotlib", "safetensors")
"""What `metalad-runtime` does not have: the last four, and modules of metalad that need them."""


def require_packages(user: str, packages: Mapping[str, str], remedy: str) -> None:
    """Import packages that are not always installed, so that later imports of them succeed.

    user: what needs them, such as "`metalad serve`". packages: modules, and the packages that have them. remedy: what
    to do, such as "install metalad[serve]".

    Raises:
        ConfigError: packages are missing, or one is installed but cannot be imported.
    """
    disable_telemetry()
    missing = []
    for module, package in packages.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken package may raise anything
            if not _is_absent(module, error):
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise ConfigError(
                    f"{user} needs {package}, which is installed but cannot be imported ({reason}); {remedy} anew"
                ) from error
            missing.append(package)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(f"{user} needs {', '.join(missing)}, which {verb} not installed; {remedy}")


def disable_telemetry() -> None:
    """Keep onnxruntime, OpenVINO and Ray, if they are imported later, from reporting their use over the network.

    All do so by default, onnxruntime with properties of the model. `ORT_DISABLE_TELEMETRY=0` and
    `RAY_USAGE_STATS_ENABLED=1` in the environment, or an import of `openvino_telemetry` before, keep their defaults.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO then does without it


def _is_absent(module: str, error: Exception) -> bool:
    """Return whether an import failed because the module or its package does not exist, not one that it imports."""
    return isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")


def not_in_runtime(what: str, error: ImportError) -> str | None:
    """Return a line for the user if `what` failed because `metalad-runtime` lacks a module, else None."""
    if not isinstance(error, ModuleNotFoundError) or (error.name or "").partition(".")[0] not in NOT_IN_RUNTIME:
        return None
    return f"{what} needs {error.name}, which is not installed; install metalad instead of metalad-runtime"
