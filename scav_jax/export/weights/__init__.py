"""Released weights of other systems as models of ours: `scav weights --from equiav FILE ...`."""
