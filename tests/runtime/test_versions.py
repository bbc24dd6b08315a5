import platform

import numpy as np

from metalad.runtime.versions import versions


def test_what_is_installed_is_named_and_what_is_not_is_left_out() -> None:
    assert versions(["numpy", "no-such-package"]) == {"python": platform.python_version(), "numpy": np.__version__}
