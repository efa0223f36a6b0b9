"""Other forms of a model: diffusers' pipeline, a graph (ONNX, torch.export), a card; latents as a data set."""
