"""`python -m tests` runs everything: lint, types, tests. See __main__.py."""
