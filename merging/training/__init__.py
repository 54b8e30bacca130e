"""Helpers that make patches while transformers' Trainer trains; for trainers alone, the service never imports them."""
