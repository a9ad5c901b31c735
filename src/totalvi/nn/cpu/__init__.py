"""The operations of the network as compiled loops for the CPU, each with its gradients."""
