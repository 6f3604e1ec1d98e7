"""Training on a Ray cluster; nothing else of the package imports Ray."""
