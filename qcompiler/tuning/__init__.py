"""Which steps for accuracy help this model, found by trying them."""
