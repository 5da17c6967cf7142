"""Networks whose large products are of 8-bit integers."""
