"""The ops, one module each: argument checks, autograd, fakes, and the PyTorch implementation.

Each module has the name of its op in every other room of the project.
"""
