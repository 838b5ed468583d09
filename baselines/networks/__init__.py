"""Parts of the models: trunks, transformers, their losses, and the weights of others."""
