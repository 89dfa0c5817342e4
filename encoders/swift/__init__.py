"""SwiFT (Kim et al., NeurIPS 2023): volume series in, one vector a segment out.

A Swin transformer over three axes of space and one of time: windows of voxels and frames attend
among themselves, every other block in windows moved by half, and space is halved between stages.
"""
