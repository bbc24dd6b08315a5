"""What a user runs: one public function a file, named after the file; and what they share (model, inference,
rendering, config).

It may import everything but `metalad.cli`.
"""
