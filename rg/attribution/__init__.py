"""Maps of where a model looks, by any method, and whether they can be believed."""
