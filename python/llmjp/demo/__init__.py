"""The demonstration: from text to a trained model's own text, and the texts bundled for it."""
