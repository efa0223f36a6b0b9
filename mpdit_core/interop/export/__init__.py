"""The formats of `mpdit export`: a model folder, diffusers, ONNX, torch.export, a Space; latents as a data set."""
