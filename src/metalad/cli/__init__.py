"""The command line: parses arguments, calls the public API, and prints.

It may import everything; torch is imported only when a command runs.
"""
