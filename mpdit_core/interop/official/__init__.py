"""Converting checkpoints of the official MPDiT, DiT and SiT code to model folders of mpdit.

job.py              `mpdit import` and `import_official`, which use all of the following
reading.py          a .pt or .safetensors file -> its tensors, without running code from it
file_signatures.py  what an unusable file seems to be, for the message
kinds.py            whether it is MPDiT, DiT (epsilon) or SiT (time direction reversed), and its exact conversion
names.py            official tensor names and shapes -> our configuration and state dict
"""
