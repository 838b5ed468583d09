"""Volumes of any size: their maps on disk, their instances block by block, crops for training."""
