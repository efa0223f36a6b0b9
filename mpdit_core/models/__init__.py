"""Models on the disk: model_folder.py, run_folder.py, and hub.py for those on the Hugging Face Hub."""
