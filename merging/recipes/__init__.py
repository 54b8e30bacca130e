"""Recipes: how to make a model from a base and patches. Text in, canonical form out."""
