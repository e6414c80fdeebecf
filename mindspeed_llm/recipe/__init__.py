"""Recipes: preprocess, train, evaluate and export as one YAML file describes (`mindspeed-llm recipe`)."""
