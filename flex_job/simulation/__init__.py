"""Simulated particles of a moving antibody: exact sums of Gaussian beads, with no voxels and no projector of ours."""
