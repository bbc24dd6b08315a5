"""Score the images that arrive in a folder, or the frames of a camera, a stream or a video, and log the results.

It may import `metalad.pipelines` and what stands below.
"""

from metalad.pipelines.watch.run import watch

__all__ = ["watch"]
