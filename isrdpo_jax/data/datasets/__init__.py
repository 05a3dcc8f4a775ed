"""TFDS builders: each turns a source of videos and questions into ArrayRecord."""
