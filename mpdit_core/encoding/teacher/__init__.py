"""A teacher's features, stored once beside latents, for the objective `alignment`.

store.py       the pass over the images that makes them, and their projection to fewer dimensions
teachers.py    the teachers: feature extractors with a map, and the latents themselves
"""
