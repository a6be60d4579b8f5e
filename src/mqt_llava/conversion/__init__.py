"""Original checkpoints to folders for `from_pretrained`: commands `convert_mqt_llava` and `convert_quecc_llava`."""
