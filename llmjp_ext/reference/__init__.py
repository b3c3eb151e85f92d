"""Each op in a few lines of plain PyTorch: the truth that tests compare with, in any precision."""
