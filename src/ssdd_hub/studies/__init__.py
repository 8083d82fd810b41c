"""What only measures the implementation: time of steps, time to quality, memory, bias of gradients."""
