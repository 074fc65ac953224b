"""Takes a generator out of this code base: as an ONNX file, as a torch.export program, as a folder for the hub."""
