"""The laws: relaxed (and exact) count distributions as ``torch.distributions`` citizens, one file each."""
