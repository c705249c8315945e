"""Voice conversion with a VQ/VAE WaveNet autoencoder."""
