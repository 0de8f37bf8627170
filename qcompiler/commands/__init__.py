"""What each command of `qcompiler` does; `qcompiler.cli` lists them and reports their errors."""
