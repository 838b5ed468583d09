"""The benchmark's baselines: one file per model in ``baselines.models``, one training loop, one inference path."""
