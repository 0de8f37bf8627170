"""Code generation of qcompiler: legal programs to machine code, through TVM."""
