"""Trained weights for sepnb: a folder each, found by `sepnb.train.checkpoint.weights_places`. Imports nothing."""
