"""RunConfig -> objects: the composition root, and the only reader of the whole configuration."""
