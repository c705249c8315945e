"""The compiled WaveNet sampler (C++), loaded through ctypes."""
