"""What every worker shares: gRPC server, dynamic batcher, image codec, weights, health, drain, metrics."""
