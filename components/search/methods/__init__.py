"""The search methods, one file each; a file registers its methods when it is imported."""
