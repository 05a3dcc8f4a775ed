"""The jitted programs: pure functions of parameters and arrays, with explicit static configuration."""
