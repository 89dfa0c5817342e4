"""BrainMT: a convolutional stem, Mamba layers and attention blocks over volumes of fMRI."""
