"""From raw volumes to the published dataset: sources, slices, splits, parquet and OME-Zarr.

``em-bench build`` is the command; ``dataset_builder.sources`` holds one file per source.
"""
