"""Measuring policies on held-out videos, and the judge against the truth; every figure with its count and interval."""
