"""Checkpoints of the official MPDiT, DiT and SiT code become model folders of ours.

job.py              `mpdit import`, and `import_official`: all of the following together
reading.py          a .pt or .safetensors file -> its tensors, without running anything from it
file_signatures.py  what a file that cannot be used seems to be, for the message
kinds.py            MPDiT, DiT (epsilon) or SiT (time direction reversed): which it is, and the exact conversion
names.py            official tensor names and shapes -> our configuration and state dict
"""

from mpdit_core.interop.official.names import convert_state_dict

__all__ = ["convert_state_dict"]
