"""Other forms of a model: diffusers' (pipeline folder), a graph (ONNX, torch.export), a card, a Hugging Face data set."""
