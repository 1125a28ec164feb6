"""What is known of a model from its files, which models are in memory, and what is kept on disk for them."""
