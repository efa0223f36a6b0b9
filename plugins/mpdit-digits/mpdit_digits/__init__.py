"""Handwritten digits for mpdit: the data set and two feature extractors."""
