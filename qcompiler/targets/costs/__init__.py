"""Cost tables of the CPU targets: measured defaults, which `qcompile probe` replaces."""
