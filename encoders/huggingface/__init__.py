"""Any DNA language model of the transformers library as a DNA encoder."""
