"""The terms of the training loss, one per file. The table `objective` of a run's configuration chooses terms and
weights; flow/loss.py adds them up.

To add one: a file here with a dataclass as `Objective` in mpdit_core/protocols.py describes, and a line in
pyproject.toml.
"""
