"""The harness that runs the suites, verifies recorded rows, and regenerates the tables in the documentation."""
