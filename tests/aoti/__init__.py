"""Tests of the backend aoti: real compilers in child processes, and what goes wrong with them."""
