"""GPT-2: its data, its model, and the programs that train it and let it write text."""
