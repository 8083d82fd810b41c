"""Studies that recipes run: measurements of the package, which the package itself does not need."""
