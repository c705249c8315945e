"""The networks, written once in PyTorch; used by training and export."""
