"""Attacks on what users and files can give to the project, made up from fixed seeds.

The tests try each a few times; `python -m tests attack` tries all of them often.
"""
