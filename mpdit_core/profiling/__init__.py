"""The parts of `mpdit profile-flops`: what to profile, tables, plans, search, measurement, figure."""
