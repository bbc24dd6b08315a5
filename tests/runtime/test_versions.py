import platform

import numpy as np

from metalad.runtime.versions import versions


def test_versions_of_installed_packages_only() -> None:
    assert versions(["numpy", "no-such-package"]) == {"python": platform.python_version(), "numpy": np.__version__}
