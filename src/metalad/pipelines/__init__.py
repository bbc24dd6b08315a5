"""What a user runs: one public function a file, named after the file.

It may import everything but `metalad.cli`.
"""
