"""Flax NNX declarations of the video tower, projector and decoder; parameters travel as plain nested dicts."""
