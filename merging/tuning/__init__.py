"""The search for the weights and parameters of a recipe: which numbers, in which order, and what was found."""
