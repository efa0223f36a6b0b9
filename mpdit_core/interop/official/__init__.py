"""Checkpoints of the official MPDiT, DiT and SiT code, converted to model folders of mpdit. job.py is the beginning."""
