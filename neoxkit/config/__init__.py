"""What a run is: the model, the data, the optimiser; read from YAML, strictly. Imports no torch."""
