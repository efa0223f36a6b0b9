"""Checkpoints of the official MPDiT, DiT and SiT code become model folders of ours.

reading.py          a .pt or .safetensors file -> its tensors, without running anything from it
file_signatures.py  what a file that cannot be used seems to be, for the message
kinds.py            MPDiT, DiT (epsilon) or SiT (time direction reversed): which it is, and the exact conversion
names.py            official tensor names and shapes -> our configuration and state dict
importing.py        all of it together: `import_official`
job.py              `mpdit import`
"""

from mpdit_core.interop.official.importing import import_official
from mpdit_core.interop.official.names import convert_state_dict

__all__ = ["convert_state_dict", "import_official"]
