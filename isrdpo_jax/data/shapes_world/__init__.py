"""An embedded world of moving shapes: small enough for a CPU, with exact ground truth."""
