"""Studies: rows of settings that are trained over several seeds and compared."""
