"""A teacher's features, stored once beside latents, for the objective `alignment`.

store.py       the pass over the images that makes them
teachers.py    what gives them: feature extractors with a map, and the latents themselves
projection.py  fewer dimensions
folder.py      what stands in the folder meanwhile
"""
