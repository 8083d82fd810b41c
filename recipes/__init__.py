"""The recipes: scripts to launch, installed as `ssdd_hub.recipes`."""
