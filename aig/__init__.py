"""Annealed Importance Guidance for text-to-image diffusion models (Jena et al., WACV 2025, arXiv 2409.06493)."""
