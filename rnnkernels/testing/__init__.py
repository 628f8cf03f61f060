"""References in NumPy that the package is tested against."""
