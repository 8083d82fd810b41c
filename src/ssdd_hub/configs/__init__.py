"""The settings of whole recipes, put together of those of the parts; no other package imports them."""
