"""One semantic map, aggregated at six levels: what a patch, a slice and a volume cost."""
