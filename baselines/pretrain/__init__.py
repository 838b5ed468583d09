"""Pre-training by reconstruction (RETINA)."""
