"""What benches/end-to-end is made of. `campaign` has the order of things."""
