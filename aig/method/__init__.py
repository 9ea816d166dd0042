"""The mathematics of the method, and how it runs inside stock diffusers pipelines."""
