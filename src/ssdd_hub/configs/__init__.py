"""Settings of whole recipes, assembled from those of the parts; only recipes import them."""
