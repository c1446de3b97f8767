"""A WebUI from outside: start one, ask one that runs, measure what the extension brings there."""
