"""Self-contained HTML pages of reports and comparisons.

It may import the rest of `metalad.results`, `metalad.visualization` and what stands below.
"""
