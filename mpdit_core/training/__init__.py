"""The parts of training: batches, optimizer, sharing over devices, what is saved, what is watched.

The loop that puts them together is `mpdit_core/training/job.py`.
"""
