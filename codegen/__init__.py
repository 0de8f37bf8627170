"""Code generation: legal programs to machine code, through TVM."""
