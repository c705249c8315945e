"""Export of a trained run into a bundle, and its verification."""
