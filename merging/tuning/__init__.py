"""The search for the weights and parameters of a recipe: which numbers, in which order they are tried, what was found."""
