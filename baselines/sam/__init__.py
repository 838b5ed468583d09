"""Segment Anything and micro-SAM: weights, prompts, prediction, and the packages of their authors as engines."""
