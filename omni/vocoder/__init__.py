"""Units → waveform: CodeHiFiGAN, and how to stream it without a seam."""
