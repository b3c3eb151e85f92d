"""Training data: tokenising text, Megatron's indexed files, samples packed across documents."""
