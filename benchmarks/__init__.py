"""The experiments of this repository: declared suites, their recorded results, and the tables made from them."""
