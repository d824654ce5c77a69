"""What a pass is (``contract``), where passes come from (``registry``), how they run (``run``)."""
