"""What a network computes and costs: accuracy, statistics, parameters, MACs, latency."""
