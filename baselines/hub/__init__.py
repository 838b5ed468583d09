"""Model repositories on the Hub: card, results, export to transformers."""
