"""The terms of the training loss, one per file. Which are used, and with what weights, is the table `objective` of a
run's configuration; flow/loss.py adds them up.

To add one: a file here with a dataclass as `Objective` in mpdit_core/api.py describes, and a line in pyproject.toml.
"""
